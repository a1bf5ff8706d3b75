"""A run folder: started or resumed by the same call, finished once, never overwritten."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from saelab.activations.store import Store
from saelab.errors import SaelabError, UsageError
from saelab.interrupts import StopRequest, stop_on_signals
from saelab.progress import Progress
from saelab.sae.autoencoder import SAEParameters, SparseAutoencoder
from saelab.sae.config import SAEConfig
from saelab.sae.feature_statistics import FeatureAccumulator, FeatureStatistics
from saelab.sae.files import load_sae, save_sae
from saelab.sae.fold import fold_scale
from saelab.storage.files import append_line, read_json, remove_leftovers, require_free_space, write_json
from saelab.storage.lock import locked
from saelab.storage.manifest import read_manifest, write_manifest
from saelab.training.checkpoints import keep_regular_only, latest_checkpoint, remove_unfinished
from saelab.training.config import TrainConfig, train_config_from_json
from saelab.training.loop import (
    CHECKPOINTS,
    METRICS,
    Trainer,
    encoder_inputs,
    make_trainer,
    restore_metrics,
    train_to_end,
)
from saelab.training.memory import require_memory
from saelab_kernels.rules import rule_to_json

CONFIG, ENVIRONMENT, TIMING, SAE = "config.json", "environment.json", "timing.jsonl", "sae"
STATISTICS_ROWS = 200_000
"""Training rows over which feature statistics are taken."""


@dataclass(frozen=True)
class Run:
    """A finished run on disk."""

    path: Path
    config: TrainConfig
    store_path: Path

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Open a finished run.

        Raises:
            DamagedFileError: It is not a run, or was never finished.
        """
        path = Path(path)
        manifest = read_manifest(path, "run")
        config = train_config_from_json(read_json(path / CONFIG), str(path / CONFIG))
        return cls(path, config, (path / manifest.content["store"]).resolve())

    def sae(self) -> SparseAutoencoder:
        """Load the trained SAE."""
        return load_sae(self.path / SAE)


def train_run(
    config: TrainConfig,
    store: Store,
    folder: Path,
    *,
    resume: Literal["exact", "plain"] = "exact",
    stop: StopRequest | None = None,
    quiet: bool = False,
) -> Run:
    """Train an SAE, or finish an interrupted run of the same configuration.

    Args:
        config: What to train.
        store: Activations; its identity must be the one in the configuration.
        folder: The run folder. A finished run of the same configuration is returned as it is.
        resume: ``exact`` refuses to go on with another thread count than before, because sums would
            differ in the last bits; ``plain`` goes on.
        stop: Asks for a stop from another thread; signals are handled where it is not given.
        quiet: Show no progress.

    Raises:
        UsageError: The configuration cannot work, or the folder holds a run of another one.
        Interrupted: A stop was asked for; the same call goes on.
        SaelabError: Memory or disk do not suffice, the data are not finite, or the loss diverged.
    """
    config.check()
    hook = store.hook(config.hook)
    plan = require_memory(config, hook.d_in)
    with locked(folder, "train"):
        remove_leftovers(folder)
        if (folder / "manifest.json").exists():
            _require_same_config(folder, config)
            return Run.open(folder)
        require_free_space(folder, plan.disk_bytes, "training")
        _start_folder(folder, config)
        trainer = _new_or_resumed(config, store, folder, resume)
        if stop is None:
            with stop_on_signals() as stop:
                _train(trainer, stop, quiet)
        else:
            _train(trainer, stop, quiet)
        _finish(trainer, store, folder)
    return Run.open(folder)


def _train(trainer: Trainer, stop: StopRequest, quiet: bool) -> None:
    config = trainer.config
    label = f"training {config.recipe.name}, {config.width:,} features"
    done = trainer.step * config.batch
    with Progress(label, config.steps * config.batch, "tokens", done=done, quiet=quiet) as progress:
        try:
            train_to_end(trainer, stop, progress)
        finally:
            append_line(
                trainer.folder / TIMING, {"step": trainer.step, "tokens_per_second": round(progress.rate, 1)}
            )


def _start_folder(folder: Path, config: TrainConfig) -> None:
    if (folder / CONFIG).exists():
        _require_same_config(folder, config)
    else:
        strangers = [p.name for p in folder.iterdir() if p.name != ".lock"]
        if strangers:
            raise UsageError(
                f"{folder} holds other files ({', '.join(sorted(strangers)[:3])}); choose a new folder"
            )
        write_json(folder / CONFIG, config.to_json())
    write_json(folder / ENVIRONMENT, environment())
    remove_unfinished(folder / CHECKPOINTS)


def _new_or_resumed(
    config: TrainConfig, store: Store, folder: Path, resume: Literal["exact", "plain"]
) -> Trainer:
    checkpoint = latest_checkpoint(folder / CHECKPOINTS)
    if checkpoint is None:
        restore_metrics(folder, 0)
        return make_trainer(config, store, folder)
    threads = checkpoint.facts["threads"]
    if resume == "exact" and threads != torch.get_num_threads():
        raise SaelabError(
            f"{folder} was trained with {threads} threads and this process has {torch.get_num_threads()}: the same "
            f"bits are not possible; set OMP_NUM_THREADS={threads}, or go on with --resume plain"
        )
    trainer = make_trainer(config, store, folder, cursor=checkpoint.facts["cursor"])
    trainer.restore(checkpoint)
    restore_metrics(folder, checkpoint.facts["metrics_bytes"])
    return trainer


def _finish(trainer: Trainer, store: Store, folder: Path) -> None:
    sae, optional_theta = finished_sae(trainer, store)
    save_sae(folder / SAE, sae, _feature_statistics(sae, trainer, store), optional_theta)
    config = trainer.config
    keep_regular_only(folder / CHECKPOINTS, config.checkpoint_every, config.steps)
    names = [CONFIG, METRICS, *(f"{SAE}/{name}" for name in read_manifest(folder / SAE).files)]
    content = {
        "store": os.path.relpath(store.path.resolve(), folder.resolve()),
        "store_identity": store.identity,
        "sae": SAE,
    }
    write_manifest(folder, "run", names, content)


@torch.no_grad()
def finished_sae(trainer: Trainer, store: Store) -> tuple[SparseAutoencoder, torch.Tensor | None]:
    """Return the SAE in raw units with its calibrated inference form, and its optional threshold."""
    config, hook = trainer.config, store.hook(trainer.config.hook)
    params = SAEParameters(**{name: t.detach() for name, t in trainer.params.named().items()})
    form = config.recipe.finalise(
        params, trainer.recipe_state, lambda: encoder_inputs(trainer, store, store.n_rows(hook, "train"))
    )
    how = trainer.normalisation
    folded = fold_scale(params, form.theta, how, how, apply_b_dec_to_input=True)
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
        model_identity=store.model_identity.hash if store.model_identity else "",
        model_name=store.model_identity.name if store.model_identity else "",
        store_identity=store.identity,
    )
    sae = SparseAutoencoder(sae_config, folded.parameters, folded.theta).cpu()
    optional = form.optional_theta
    return sae, None if optional is None or how.is_per_token else (optional / how.factor).cpu()


def _feature_statistics(sae: SparseAutoencoder, trainer: Trainer, store: Store) -> FeatureStatistics:
    accumulator = FeatureAccumulator(sae.config.d_sae)
    hook = store.hook(trainer.config.hook)
    total = min(STATISTICS_ROWS, store.n_rows(hook, "train"))
    for start in range(0, total, 4096):
        x = store.rows(hook, "train", start, min(start + 4096, total)).x
        accumulator.add(sae.encode(x[torch.isfinite(x).all(1)]))
    return accumulator.result()


def _require_same_config(folder: Path, config: TrainConfig) -> None:
    saved, wanted = read_json(folder / CONFIG), config.to_json()
    if differences := _differences(saved, wanted):
        raise UsageError(
            f"{folder} holds a run with {'; '.join(differences)}; choose another folder, or give the same options"
        )


def _differences(saved: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(saved.keys() | wanted.keys()):
        old, new = saved.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} = {old} (now {new})")
    return found


def environment() -> dict[str, Any]:
    """Return facts about the machine and the versions, for the run's record; not a data file."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "system": platform.system(),
        "arguments": sys.argv[1:],
    }
