"""A run folder: started or resumed by the same call, finished once, never overwritten."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from saelab.activations.store import Store
from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.fields import differences
from saelab.interrupts import StopRequest, stop_on_signals
from saelab.progress import Progress
from saelab.sae.autoencoder import SparseAutoencoder
from saelab.sae.files import load_sae
from saelab.storage.files import append_line, read_json, remove_leftovers, require_free_space, write_json
from saelab.storage.lock import locked
from saelab.storage.manifest import read_manifest, write_manifest
from saelab.training.checkpoints import keep_regular_only, latest_checkpoint, remove_unfinished
from saelab.training.config import TrainConfig, train_config_from_json
from saelab.training.finish import write_finished_sae
from saelab.training.loop import CHECKPOINTS, METRICS, Trainer, make_trainer, restore_metrics, train_to_end
from saelab.training.memory import require_memory

CONFIG, ENVIRONMENT, TIMING, SAE = "config.json", "environment.json", "timing.jsonl", "sae"
Resume = Literal["exact", "plain"]


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
            UsageError: Its configuration is one that cannot work.
        """
        path = Path(path)
        content = read_manifest(path, "run").content
        if not isinstance(content.get("store"), str):
            raise DamagedFileError(f"{path}: its manifest does not name a store")
        config = train_config_from_json(read_json(path / CONFIG), str(path / CONFIG))
        config.check()
        try:
            store_path = (path / content["store"]).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have
            raise DamagedFileError(
                f"{path}: its manifest names the store {content['store']!r}: {error}"
            ) from error
        return cls(path, config, store_path)

    def sae(self) -> SparseAutoencoder:
        """Load the trained SAE."""
        return load_sae(self.path / SAE)


def train_run(
    config: TrainConfig,
    store: Store,
    folder: Path,
    *,
    resume: Resume = "exact",
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
    if store.identity != config.store_identity:
        raise UsageError(
            f"{store.path} is not the store that the configuration names ({config.store_identity})"
        )
    plan = require_memory(config, store.hook(config.hook).d_in)
    with locked(folder, "train"), stop_on_signals() if stop is None else nullcontext(stop) as request:
        _require_own_folder(folder, config)
        remove_leftovers(folder, "*", f"{SAE}/*", f"{CHECKPOINTS}/*/*")
        if not (folder / "manifest.json").exists():
            require_free_space(folder, plan.disk_bytes - _size_of(folder), "training")
            with _new_or_resumed(config, store, folder, resume) as trainer:
                _train(trainer, request, quiet)
            _finish(trainer, store, request)
    return Run.open(folder)


def _train(trainer: Trainer, stop: StopRequest, quiet: bool) -> None:
    config = trainer.config
    if trainer.step == config.steps:
        return
    label = f"training {config.recipe.name}, {config.width:,} features"
    done = trainer.step * config.batch
    with Progress(label, config.steps * config.batch, "tokens", done=done, quiet=quiet) as progress:
        try:
            train_to_end(trainer, stop, progress)
        finally:
            rate = round(progress.rate, 1)
            append_line(trainer.folder / TIMING, {"step": trainer.step, "tokens_per_second": rate})


def _require_own_folder(folder: Path, config: TrainConfig) -> None:
    """Refuse a folder that holds anything but a run of this configuration, before touching it."""
    if (folder / CONFIG).exists():
        if found := differences(read_json(folder / CONFIG), config.to_json()):
            raise UsageError(
                f"{folder} holds a run of another configuration ({'; '.join(found)}); "
                "choose another folder, or give the same options"
            )
        return
    known = {".lock", CONFIG + ".writing"}
    if strangers := sorted(path.name for path in folder.iterdir() if path.name not in known):
        raise UsageError(f"{folder} holds other files ({', '.join(strangers[:3])}); choose a new folder")


def _new_or_resumed(config: TrainConfig, store: Store, folder: Path, resume: Resume) -> Trainer:
    remove_unfinished(folder / CHECKPOINTS)
    checkpoint = latest_checkpoint(folder / CHECKPOINTS)
    if checkpoint is None:
        trainer = make_trainer(config, store, folder)  # may refuse; until then the folder stays empty
        write_json(folder / CONFIG, config.to_json())
        restore_metrics(folder, 0)
    else:
        _require_same_threads(folder, checkpoint.facts["threads"], resume)
        trainer = make_trainer(config, store, folder, cursor=checkpoint.facts["cursor"])
        trainer.restore(checkpoint)
        restore_metrics(folder, checkpoint.facts["metrics_bytes"])
    write_json(folder / ENVIRONMENT, environment())
    return trainer


def _require_same_threads(folder: Path, threads: int, resume: Resume) -> None:
    if resume == "exact" and threads != (now := torch.get_num_threads()):
        raise SaelabError(
            f"{folder} was trained with {threads} threads and this process has {now}: the same bits are not "
            f"possible; set OMP_NUM_THREADS={threads}, or go on with --resume plain"
        )


def _finish(trainer: Trainer, store: Store, stop: StopRequest) -> None:
    folder, config = trainer.folder, trainer.config
    write_finished_sae(trainer, store, folder / SAE, stop)
    keep_regular_only(folder / CHECKPOINTS, config.checkpoint_every, config.steps)
    sae_names = [*read_manifest(folder / SAE).files, "manifest.json"]
    content = {
        "store": os.path.relpath(store.path.resolve(), folder.resolve()),
        "store_identity": store.identity,
    }
    write_manifest(folder, "run", [CONFIG, METRICS, *(f"{SAE}/{name}" for name in sae_names)], content)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


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
