"""From a trainer that is done to a finished SAE on disk."""

from __future__ import annotations

from pathlib import Path

import torch

from saelab.activations.store import Store
from saelab.errors import Interrupted
from saelab.interrupts import StopRequest
from saelab.sae.autoencoder import SAEParameters, SparseAutoencoder
from saelab.sae.config import SAEConfig
from saelab.sae.feature_statistics import FeatureAccumulator, FeatureStatistics
from saelab.sae.files import save_sae
from saelab.sae.fold import fold_scale
from saelab.training.loop import Trainer, encoder_inputs
from saelab.training.sample import spread_rows
from saelab_kernels.rules import rule_to_json

STATISTICS_ROWS = 200_000
"""Training rows over which feature statistics are taken, about."""


def write_finished_sae(trainer: Trainer, store: Store, folder: Path, stop: StopRequest) -> None:
    """Calibrate, fold, take feature statistics, and write the SAE's folder.

    Raises:
        Interrupted: A stop was asked for; the training itself is saved.
    """
    sae, optional_theta = finished_sae(trainer, store)
    statistics = _feature_statistics(sae, trainer, store, stop)
    save_sae(folder, sae.cpu(), statistics, optional_theta, replace=True)


@torch.no_grad()
def finished_sae(trainer: Trainer, store: Store) -> tuple[SparseAutoencoder, torch.Tensor | None]:
    """Return the SAE in raw units with its calibrated inference form, and its optional threshold."""
    config, hook = trainer.config, store.hook(trainer.config.hook)
    params = SAEParameters(**{name: tensor.detach() for name, tensor in trainer.params.named().items()})
    form = config.recipe.finalise(
        params, trainer.recipe_state, lambda rows: encoder_inputs(trainer, store, rows)
    )
    how = trainer.normalisation
    folded = fold_scale(params, form.theta, how, how, apply_b_dec_to_input=True)
    model = store.model_identity
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
        store_identity=store.identity,
    )
    sae = SparseAutoencoder(sae_config, folded.parameters, folded.theta)
    optional = form.optional_theta
    return sae, None if optional is None or how.is_per_token else (optional / how.factor).cpu()


def _feature_statistics(
    sae: SparseAutoencoder, trainer: Trainer, store: Store, stop: StopRequest
) -> FeatureStatistics:
    accumulator = FeatureAccumulator(sae.config.d_sae)
    for x in spread_rows(store, store.hook(trainer.config.hook), STATISTICS_ROWS):
        if stop.requested:
            raise Interrupted("stopped while finishing; training is saved, and the same command goes on")
        accumulator.add(sae.encode(x.to(sae.W_enc.device)))
    return accumulator.result()
