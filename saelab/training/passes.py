"""One pass over a source of activations, from a plan to finished run folders; resumed by the same call."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saelab.activations.source import ActivationSource, Order
from saelab.errors import DamagedFileError
from saelab.interrupts import StopRequest
from saelab.progress import Progress
from saelab.storage.files import append_line, write_json
from saelab.training.checkpoints import (
    Checkpoint,
    Resume,
    keep_regular_only,
    latest_checkpoint,
    remove_unfinished,
    require_same_arithmetic,
)
from saelab.training.config import TrainConfig
from saelab.training.finish import finish_run, is_finished
from saelab.training.loggers import open_loggers
from saelab.training.loop import TrainingPass, restore_metrics, train_to_end
from saelab.training.member import METRICS, Member, make_member
from saelab.training.run import CONFIG
from saelab.training.warm_start import WarmStart
from saelab_kernels.dispatch import choose_backend
from saelab_kernels.warm_up import is_cold, warm_up

ENVIRONMENT, TIMING = "environment.json", "timing.jsonl"


@dataclass(frozen=True, kw_only=True)
class HowToTrain:
    """What does not change the result: how a training is watched, stopped and resumed."""

    stop: StopRequest = field(default_factory=StopRequest)
    """Asks for a stop."""
    resume: Resume = "exact"
    """``exact`` refuses to go on with another thread count than before, ``plain`` goes on."""
    log: tuple[str, ...] = ()
    """Loggers beside `metrics.jsonl`."""
    quiet: bool = False
    """Show no progress."""
    warm: WarmStart | None = None
    """The SAE to start from, where the configuration names one."""


@dataclass(frozen=True, kw_only=True)
class PassPlan:
    """Which SAEs are trained on one pass, and where they go."""

    members: dict[str, TrainConfig]
    """By name; all agree in what the loop reads of them."""
    folders: dict[str, Path]
    """Run folder of each."""
    checkpoints: Path
    """Folder of the common checkpoints."""
    may_park: bool = False
    """Whether a member that diverges is left behind."""


def train_pass(
    plan: PassPlan,
    source: ActivationSource,
    how: HowToTrain,
    on_ready: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Start a pass or go on with it, and finish the run folders of its members.

    Args:
        plan: What to train.
        source: Where the activations come from.
        how: How to watch and stop it.
        on_ready: Called when everything is built, before the first file is written.

    Returns:
        The members that diverged, with the diagnosis.

    Raises:
        Interrupted: A stop was asked for; the same call goes on.
        SaelabError: The data are not finite, or the only SAE diverged.
    """
    source.prepare(how.stop, quiet=how.quiet)
    remove_unfinished(plan.checkpoints)
    checkpoint = latest_checkpoint(plan.checkpoints)
    with _new_or_resumed(plan, source, how, checkpoint, on_ready) as training:
        for member in training.members:
            training.loggers[member.name] = open_loggers(
                how.log,
                member.folder,
                member.name,
                member.config.to_json(),
                member.step,
                history=member.folder / METRICS,
            )
        _train(training, how)
    for member in training.members:
        if not is_finished(member.folder):
            finish_run(member, source, how.stop, how.warm)
    keep_regular_only(plan.checkpoints, training.config.checkpoint_every, training.config.steps)
    return training.parked


def _new_or_resumed(
    plan: PassPlan,
    source: ActivationSource,
    how: HowToTrain,
    checkpoint: Checkpoint | None,
    on_ready: Callable[[], None],
) -> TrainingPass:
    if checkpoint is not None:
        device = next(iter(plan.members.values())).device
        require_same_arithmetic(plan.checkpoints.parent, checkpoint, device, how.resume)
    names = list(plan.members if checkpoint is None else checkpoint.members)
    if unknown := [name for name in names if name not in plan.members]:
        raise DamagedFileError(
            f"{plan.checkpoints} hold the state of {unknown[0]}, which is not trained here"
        )
    members = [
        make_member(name, plan.members[name], source, plan.folders[name], how.warm)  # may refuse
        for name in names
    ]
    config = members[0].config
    order = Order(
        batch=config.batch,
        seed=config.data_seed,
        pool_rows=config.pool_rows,
        total_rows=config.steps * config.batch,
        gradients=any(member.config.recipe.traits.loss_gradients for member in members),
    )
    hooks = list(dict.fromkeys(hook for member in members for hook in member.config.all_hooks))
    stream = source.open(hooks, order, None if checkpoint is None else checkpoint.position)
    training = TrainingPass(members, stream, plan.checkpoints, plan.may_park)
    try:
        on_ready()
        _restore(training, checkpoint)
    except BaseException:
        training.close()
        raise
    return training


def _restore(training: TrainingPass, checkpoint: Checkpoint | None) -> None:
    """Bring members and their folders to where the checkpoint was taken, or to the start."""
    for member in training.members:
        write_json(member.folder / CONFIG, member.config.to_json())  # first: it says whose folder this is
        saved = None if checkpoint is None else checkpoint.members[member.name]
        size = 0 if saved is None else saved["metrics_bytes"]
        restore_metrics(member.folder, size, training.checkpoints)
        if checkpoint is not None and saved is not None:
            member.restore(checkpoint.tensors(member.name), checkpoint.step, saved["skipped"])
        write_json(member.folder / ENVIRONMENT, environment(member.config.device))
    if checkpoint is not None:
        training.step, training.parked = checkpoint.step, dict(checkpoint.parked)


def _train(training: TrainingPass, how: HowToTrain) -> None:
    config = training.config
    if training.step == config.steps or not training.members:
        return
    if is_cold(config.device):
        with Progress("compiling the kernels, once on this machine", 1, "steps", quiet=how.quiet) as progress:
            warm_up(config.device)
            progress.advance(1)
    done, total = training.step * config.batch, config.steps * config.batch
    with Progress(_label(training.members), total, "tokens", done=done, quiet=how.quiet) as progress:
        try:
            train_to_end(training, how.stop, progress)
        finally:
            line = {"step": training.step, "tokens_per_second": round(progress.rate, 1)}
            for member in training.members:
                append_line(member.folder / TIMING, line)


def _label(members: list[Member]) -> str:
    first = members[0].config
    if len(members) == 1:
        return f"training {first.recipe.name}, {first.width:,} features"
    return f"training {len(members)} SAEs"


def environment(device: str) -> dict[str, Any]:
    """Return facts about the machine and the versions, for the run's record; not a data file."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "kernels": choose_backend(device),
        "machine": platform.machine(),
        "system": platform.system(),
        "arguments": sys.argv[1:],
    }
