"""From an SAE that is trained to a finished run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from saelab.activations.rows import joined
from saelab.activations.source import ActivationSource
from saelab.errors import Interrupted
from saelab.interrupts import StopRequest
from saelab.sae.autoencoder import SAEParameters, SparseAutoencoder
from saelab.sae.config import SAEConfig
from saelab.sae.feature_statistics import FeatureAccumulator, FeatureStatistics
from saelab.sae.files import save_sae
from saelab.sae.fold import Scales, fold
from saelab.storage.manifest import MANIFEST_NAME, read_manifest, write_manifest
from saelab.storage.tensors import write_tensors
from saelab.training.loop import encoder_inputs
from saelab.training.member import METRICS, Member
from saelab.training.parking import unpark
from saelab.training.run import ACTIVATIONS, CONFIG, SAE
from saelab.training.warm_start import WarmStart
from saelab_kernels.rules import rule_to_json

STATISTICS_ROWS = 200_000
"""Training rows over which feature statistics are taken, about."""


def is_finished(folder: Path) -> bool:
    """Whether a run folder is complete."""
    return (folder / MANIFEST_NAME).exists()


def finish_run(
    member: Member, source: ActivationSource, stop: StopRequest, warm: WarmStart | None = None
) -> None:
    """Write a trained member's SAE, what is known of its activations, and the manifest that completes the run.

    Raises:
        Interrupted: A stop was asked for; the training itself is saved.
    """
    folder = member.folder
    sae, optional_theta = finished_sae(member, source)
    features = _feature_statistics(sae, member, source, stop)
    save_sae(folder / SAE, sae.cpu(), features, optional_theta, replace=True)
    statistics = {hook: source.statistics(hook) for hook in member.config.all_hooks}
    write_tensors(folder / ACTIVATIONS, {f"mean.{hook}": found.mean for hook, found in statistics.items()})
    unpark(folder)
    names = [*read_manifest(folder / SAE).files, MANIFEST_NAME]
    content = source.describe(folder) | {
        "statistics": {hook: found.scalars() for hook, found in statistics.items()},
        "init_from": None if warm is None else warm.describe(source),
    }
    write_manifest(
        folder, "run", [CONFIG, METRICS, ACTIVATIONS, *(f"{SAE}/{name}" for name in names)], content
    )


@torch.no_grad()
def finished_sae(member: Member, source: ActivationSource) -> tuple[SparseAutoencoder, torch.Tensor | None]:
    """Return the SAE in raw units with its calibrated inference form, and its optional threshold."""
    config, views = member.config, member.views
    params = SAEParameters(**{name: tensor.detach() for name, tensor in member.params.named().items()})
    form = config.recipe.finalise(
        params, member.recipe_state, lambda rows: encoder_inputs(member, source, rows)
    )
    folded = fold(form.params or params, form.theta, form.optional_theta, form.W_skip, _scales(member))
    model = source.model_identity
    sae_config = SAEConfig(
        recipe=config.recipe.name,
        d_in=views.d_in,
        d_out=views.d_out,
        d_sae=config.width,
        input_hooks=config.input_hooks,
        input_widths=tuple(view.width for view in views.inputs),
        output_hooks=config.target_hooks,
        output_widths=tuple(view.width for view in views.targets),
        hook_aliases=tuple(source.hook(hook).alias or "" for hook in config.input_hooks),
        input_normalisation=folded.input_normalisation,
        target_normalisation=folded.target_normalisation,
        apply_b_dec_to_input=config.recipe.traits.input_bias,
        has_skip=folded.W_skip is not None,
        inference=rule_to_json(form.rule),
        attribution=_for_raw_gradients(form.attribution, member),
        units=folded.units,
        model_identity=model.hash if model else "",
        model_name=model.name if model else "",
        tokenizer_hash=model.tokenizer_hash if model else "",
        source_identity=source.identity,
    )
    sae = SparseAutoencoder(sae_config, folded.parameters, folded.theta, folded.W_skip)
    return sae, None if folded.optional_theta is None else folded.optional_theta.cpu()


def _scales(member: Member) -> Scales:
    views = member.views
    return Scales(
        inputs=tuple((view.width, view.normalisation) for view in views.inputs),
        targets=tuple((view.width, view.normalisation) for view in views.targets),
        apply_b_dec_to_input=member.config.recipe.traits.input_bias,
    )


def _for_raw_gradients(attribution: dict[str, Any] | None, member: Member) -> dict[str, Any] | None:
    """Return g-SAE's score for gradients with respect to the raw target.

    With `x' = s x` those of training were `g' = g / s`, so c was smaller by s, and its running mean grows by s;
    c over its mean over the token is the same in both units (derived). Where each token has a scale of its own,
    training saw the raw gradients, and the factor is 1.
    """
    if attribution is None or attribution["mean_c"] is None:
        return attribution
    factor = member.views.targets[0].normalisation.factor  # a recipe with gradients has one hookpoint
    return attribution | {"mean_c": attribution["mean_c"] * factor}


def _feature_statistics(
    sae: SparseAutoencoder, member: Member, source: ActivationSource, stop: StopRequest
) -> FeatureStatistics:
    accumulator = FeatureAccumulator(sae.config.d_sae)
    hooks = member.config.input_hooks
    for tile in source.spread_rows(hooks, STATISTICS_ROWS):
        if stop.requested:
            raise Interrupted("stopped while finishing; training is saved, and the same command goes on")
        accumulator.add(sae.encode(joined([tile[hook] for hook in hooks]).to(sae.W_enc.device)))
    return accumulator.result()
