"""From an SAE that is trained to a finished run folder."""

from __future__ import annotations

from pathlib import Path

import torch

from saelab.activations.source import ActivationSource
from saelab.errors import Interrupted
from saelab.interrupts import StopRequest
from saelab.sae.autoencoder import SAEParameters, SparseAutoencoder
from saelab.sae.config import SAEConfig
from saelab.sae.feature_statistics import FeatureAccumulator, FeatureStatistics
from saelab.sae.files import save_sae
from saelab.sae.fold import fold_scale
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
    statistics = source.statistics(member.config.hook)
    write_tensors(folder / ACTIVATIONS, {"mean": statistics.mean})
    unpark(folder)
    names = [*read_manifest(folder / SAE).files, MANIFEST_NAME]
    content = source.describe(folder) | {
        "statistics": statistics.scalars(),
        "init_from": None if warm is None else warm.describe(source),
    }
    write_manifest(
        folder, "run", [CONFIG, METRICS, ACTIVATIONS, *(f"{SAE}/{name}" for name in names)], content
    )


@torch.no_grad()
def finished_sae(member: Member, source: ActivationSource) -> tuple[SparseAutoencoder, torch.Tensor | None]:
    """Return the SAE in raw units with its calibrated inference form, and its optional threshold."""
    config, hook = member.config, source.hook(member.config.hook)
    params = SAEParameters(**{name: tensor.detach() for name, tensor in member.params.named().items()})
    form = config.recipe.finalise(
        params, member.recipe_state, lambda rows: encoder_inputs(member, source, rows)
    )
    how = member.normalisation
    folded = fold_scale(params, form.theta, how, how, apply_b_dec_to_input=True)
    model = source.model_identity
    sae_config = SAEConfig(
        recipe=config.recipe.name,
        d_in=hook.d_in,
        d_out=hook.d_in,
        d_sae=config.width,
        input_hooks=(hook.module_path,),
        output_hooks=(hook.module_path,),
        hook_aliases=(hook.alias or "",),
        input_normalisation=folded.input_normalisation,
        target_normalisation=folded.target_normalisation,
        apply_b_dec_to_input=True,
        inference=rule_to_json(form.rule),
        units=folded.units,
        model_identity=model.hash if model else "",
        model_name=model.name if model else "",
        tokenizer_hash=model.tokenizer_hash if model else "",
        source_identity=source.identity,
    )
    sae = SparseAutoencoder(sae_config, folded.parameters, folded.theta)
    optional = form.optional_theta
    return sae, None if optional is None or how.is_per_token else (optional / how.factor).cpu()


def _feature_statistics(
    sae: SparseAutoencoder, member: Member, source: ActivationSource, stop: StopRequest
) -> FeatureStatistics:
    accumulator = FeatureAccumulator(sae.config.d_sae)
    for x in source.spread_rows(member.config.hook, STATISTICS_ROWS):
        if stop.requested:
            raise Interrupted("stopped while finishing; training is saved, and the same command goes on")
        accumulator.add(sae.encode(x.to(sae.W_enc.device)))
    return accumulator.result()
