"""The training loop of one pass: one stream of activations, one or several SAEs, one row of checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from saelab.activations.source import ActivationSource, RowStream
from saelab.activations.stream import Batch
from saelab.errors import DamagedFileError, Interrupted, SaelabError
from saelab.interrupts import StopRequest
from saelab.progress import Progress
from saelab.storage.files import append_line, sync
from saelab.storage.tensors import write_tensors
from saelab.training.checkpoints import finished_checkpoints, save_checkpoint
from saelab.training.config import TrainConfig
from saelab.training.loggers import Loggers
from saelab.training.member import METRICS, NONFINITE, Member, MetricsLine
from saelab.training.parking import park
from saelab.training.views import HookRows
from saelab_kernels.dispatch import choose_backend
from saelab_kernels.shapes import Tensor

OpenLoggers = Callable[[Member], Loggers]


@dataclass
class TrainingPass:
    """Several SAEs that see the same batches, each as if it were alone."""

    members: list[Member]
    """Those that are still trained."""
    stream: RowStream
    checkpoints: Path
    """Folder of the checkpoints; each holds the state of all members: the one commit point."""
    may_park: bool = False
    """Whether a member that diverges is left behind while the others go on."""
    parked: dict[str, str] = field(default_factory=dict)
    """Members that were left behind, with the diagnosis."""
    loggers: dict[str, Loggers] = field(default_factory=dict)
    """Loggers of each member."""
    step: int = 0
    config: TrainConfig = field(init=False)
    """Configuration of the first member; what the loop reads of it is the same for all."""

    def __post_init__(self) -> None:
        self.config = self.members[0].config

    def __enter__(self) -> TrainingPass:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream and the loggers."""
        self.stream.close()  # frees its pools and ends its threads
        for loggers in self.loggers.values():
            loggers.close()


def train_to_end(training: TrainingPass, stop: StopRequest, progress: Progress) -> None:
    """Run the remaining steps, with metrics and checkpoints on the way.

    Raises:
        Interrupted: A stop was asked for; the step was finished and saved.
        SaelabError: The activations hold NaN or inf, or the loss diverged and nobody may be left
            behind; the last good checkpoint is kept.
    """
    config = training.config
    while training.step < config.steps:
        _train_on_next(training)
        training.step += 1
        progress.advance(config.batch)
        stopping = stop.requested  # read once: it may change at any moment
        saving = stopping or _is_checkpoint_step(config, training.step)
        due = training.step % config.log_every == 0 or training.step == config.steps
        if due or saving:
            lines = _sound_metrics(training)
            if not training.members:
                return
            if due:
                _write_metrics(training, lines, progress)
            if saving:
                save(training)
        if stopping and training.step < config.steps:
            raise Interrupted(
                f"stopped after step {training.step:,} of {config.steps:,} and saved; the same command goes on"
            )


def save(training: TrainingPass) -> None:
    """Write a checkpoint of the pass as it stands."""
    for member in training.members:
        sync(member.folder / METRICS)  # the checkpoint records its size, so it must be on the disk first
    save_checkpoint(
        training.checkpoints,
        training.step,
        {member.name: member.state_tensors() for member in training.members},
        {
            "position": training.stream.position(),
            "members": {
                member.name: {
                    "metrics_bytes": (member.folder / METRICS).stat().st_size,
                    "skipped": member.skipped,
                }
                for member in training.members
            },
            "parked": training.parked,
            "threads": torch.get_num_threads(),
            "kernels": choose_backend(training.config.device),
        },
        keep_forever=training.step in training.config.branch_steps,
        every=training.config.checkpoint_every,
    )


def restore_metrics(folder: Path, size: int, checkpoints: Path) -> None:
    """Cut the metrics back to where a checkpoint was taken, so that no line stands twice.

    Raises:
        DamagedFileError: The file is shorter than the checkpoint says.
    """
    metrics = folder / METRICS
    folder.mkdir(parents=True, exist_ok=True)
    metrics.touch()
    if (found := metrics.stat().st_size) < size:
        raise DamagedFileError(
            f"{metrics} has {found:,} bytes, but {size:,} were there when the checkpoint was taken; "
            f"remove {checkpoints} to train again from the start"
        )
    os.truncate(metrics, size)


def encoder_inputs(member: Member, source: ActivationSource, rows: int) -> Iterator[Tensor]:
    """Yield what the encoder sees of about ``rows`` training rows, spread over all, in normalised units."""
    has_bias = member.config.recipe.traits.input_bias
    for scaled in member.views.spread(source, rows, member.params.b_dec.device):
        yield scaled.inputs - member.params.b_dec.detach() if has_bias else scaled.inputs


def _train_on_next(training: TrainingPass) -> None:
    """Train every member on the next batch of its hookpoints, or count it as skipped."""
    batches = training.stream.next()
    wanted = {hook for member in training.members for hook in member.config.all_hooks}  # some may be parked
    good = {hook: _is_finite(batches[hook]) for hook in batches if hook in wanted}
    for hook, is_good in good.items():
        if not is_good and not training.config.skip_nonfinite:
            _refuse_nonfinite(training, hook, batches[hook])
    # Members of one hookpoint share the copy on their device.
    rows = {
        hook: _on_device(batches[hook], training.config.device) for hook, is_good in good.items() if is_good
    }
    for member in training.members:
        if all(good[hook] for hook in member.config.all_hooks):
            member.train_on(rows)
        else:
            member.skip()


def _is_finite(batch: Batch) -> bool:
    given = (batch.x,) if batch.gradients is None else (batch.x, batch.gradients)
    return all(bool(torch.isfinite(tensor).all()) for tensor in given)


def _on_device(batch: Batch, device: str) -> HookRows:
    gradients = None if batch.gradients is None else batch.gradients.to(device)
    return HookRows(batch.x.to(device), gradients)


def _sound_metrics(training: TrainingPass) -> dict[str, MetricsLine]:
    """Return each member's metrics; those that have diverged are parked, or end the run.

    A diverged run is neither logged nor saved, so that the checkpoints that exist stay good.
    """
    lines = {}
    for member in list(training.members):
        line = member.metrics()
        reason = member.divergence(line)
        if reason is None:
            lines[member.name] = line
            continue
        places = finished_checkpoints(training.checkpoints)
        advice = f"start a new run with a learning rate below {member.config.lr:.2g}"
        if not training.may_park:
            last = f"the last good checkpoint is {places[-1]}" if places else "there was no checkpoint yet"
            raise SaelabError(f"training {reason}; {last}; {advice}")
        park(member, reason, places[-1] if places else None)
        training.members.remove(member)
        training.parked[member.name] = reason
    return lines


def _write_metrics(training: TrainingPass, lines: dict[str, MetricsLine], progress: Progress) -> None:
    for member in training.members:
        line = lines[member.name]
        append_line(member.folder / METRICS, line)
        if member.name in training.loggers:
            training.loggers[member.name].log(line | {"tokens_per_second": progress.rate})
    progress.note(_note(list(lines.values())))


def _note(lines: list[MetricsLine]) -> str:
    fvus = [line["fvu"] for line in lines if line["fvu"] is not None]
    dead = [line["dead_fraction"] for line in lines if line["dead_fraction"] is not None]
    if not fvus:
        return "batch skipped"
    if len(lines) == 1:
        return f"FVU {fvus[0]:.4f}, dead {dead[0]:.1%}"
    return f"FVU {min(fvus):.4f} to {max(fvus):.4f}, dead up to {max(dead):.1%}"


def _refuse_nonfinite(training: TrainingPass, hook: str, batch: Batch) -> None:
    rows = batch.x if batch.gradients is None else torch.cat([batch.x, batch.gradients], 1)
    bad = (~torch.isfinite(rows)).any(1).nonzero().squeeze(1)
    home = next(member.folder for member in training.members if hook in member.config.all_hooks)
    place = home / NONFINITE / f"step-{training.step:06d}.safetensors"
    write_tensors(place, {"x": batch.x, "token_index": batch.token_index})
    raise SaelabError(
        f"step {training.step:,}: {len(bad)} of {len(batch.x)} activations hold NaN or inf, the first at token "
        f"{int(batch.token_index[bad[0]]):,} of the store; the batch was saved to {place}; "
        "cache the store again, or leave such batches out with --skip-nonfinite"
    )


def _is_checkpoint_step(config: TrainConfig, step: int) -> bool:
    return step % config.checkpoint_every == 0 or step == config.steps or step in config.branch_steps
