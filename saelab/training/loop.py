"""The training loop: stream, step, optimiser, counters, metrics, checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saelab.activations.store import Store
from saelab.activations.stream import Batch, StoreStream
from saelab.errors import DamagedFileError, Interrupted, SaelabError
from saelab.interrupts import StopRequest
from saelab.progress import Progress
from saelab.sae.autoencoder import SAEParameters
from saelab.sae.config import Normalisation
from saelab.sae.normalisation import normalise, scale_to_unit_coordinates
from saelab.storage.files import append_line, sync
from saelab.storage.tensors import write_tensors
from saelab.training.checkpoints import Checkpoint, finished_checkpoints, save_checkpoint
from saelab.training.config import TrainConfig
from saelab.training.dead import DeadFeatureTracker
from saelab.training.initialise import MEDIAN_SAMPLE, initial_parameters
from saelab.training.optimiser import ConstrainedAdam, lr_factor
from saelab.training.recipes.base import State
from saelab.training.sample import spread_rows
from saelab.training.step import Step, StepResult
from saelab_kernels.gradients import GradientBuffers
from saelab_kernels.shapes import Tensor

METRICS, CHECKPOINTS, NONFINITE = "metrics.jsonl", "checkpoints", "nonfinite"
DIVERGED_FVU = 1e3


@dataclass
class Trainer:
    """The moving parts of one run; `state_tensors` and `restore` hold all of them."""

    config: TrainConfig
    folder: Path
    params: SAEParameters
    normalisation: Normalisation
    stream: StoreStream
    recipe_state: State
    tracker: DeadFeatureTracker
    optimiser: ConstrainedAdam
    one_step: Step
    step: int = 0
    skipped: int = 0

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()  # frees its pools and ends its threads

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint must hold, by dotted names."""
        return (
            {f"params.{name}": tensor.detach() for name, tensor in self.params.named().items()}
            | {f"adam.{name}": tensor for name, tensor in self.optimiser.state_tensors().items()}
            | {f"recipe.{name}": tensor for name, tensor in self.recipe_state.items()}
            | {"tokens_since_fired": self.tracker.tokens_since_fired}
        )

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same configuration."""
        tensors = checkpoint.tensors
        for name, tensor in self.params.named().items():
            tensor.copy_(tensors[f"params.{name}"])
        self.optimiser.load_state_tensors(_under("adam.", tensors))
        device = self.tracker.tokens_since_fired.device
        self.recipe_state = {name: tensor.to(device) for name, tensor in _under("recipe.", tensors).items()}
        self.tracker.tokens_since_fired.copy_(tensors["tokens_since_fired"])
        self.step, self.skipped = checkpoint.step, checkpoint.facts["skipped"]


def make_trainer(config: TrainConfig, store: Store, folder: Path, cursor: int = 0) -> Trainer:
    """Build a trainer before its first step; the same configuration and store give the same bits."""
    hook = store.hook(config.hook)
    statistics = store.statistics(hook)
    device = torch.device(config.device)
    sample = torch.cat(list(spread_rows(store, hook, MEDIAN_SAMPLE)))
    how = _normalisation(config, statistics.mean_square_norm, hook.d_in)
    normalised = normalise(sample, how)[0]
    params = initial_parameters(normalised, config.width, config.seed)
    params = SAEParameters(**{name: _to(tensor, device) for name, tensor in params.named().items()})
    variance = (
        float((normalised - normalised.mean(0)).square().sum(1).mean())
        if how.is_per_token
        else statistics.variance * how.factor**2
    )
    if not variance > 0:
        raise SaelabError(f"the activations of {config.hook} are constant: there is nothing to learn")
    buffers = GradientBuffers.for_shapes(hook.d_in, config.width, hook.d_in, device=device)
    optimiser = ConstrainedAdam(params, buffers, config.lr, config.grad_clip)
    dead = config.dead
    return Trainer(
        config=config,
        folder=folder,
        params=params,
        normalisation=how,
        stream=StoreStream(store, hook, batch_size=config.batch, seed=config.seed, cursor=cursor),
        recipe_state=config.recipe.init(params, statistics),
        tracker=DeadFeatureTracker.new(config.width, dead, config.tokens, device),
        optimiser=optimiser,
        one_step=Step(
            params=params,
            recipe=config.recipe,
            buffers=buffers,
            b_dec_gradient=optimiser.b_dec_gradient,
            normalisation=how,
            variance=variance,
            aux_k=dead.aux_k or max(1, hook.d_in // 2),
            aux_coefficient=dead.coefficient,
        ),
    )


def train_to_end(trainer: Trainer, stop: StopRequest, progress: Progress) -> None:
    """Run the remaining steps, with metrics and checkpoints on the way.

    Raises:
        Interrupted: A stop was asked for; the step was finished and saved.
        SaelabError: The activations hold NaN or inf, or the loss diverged; the last good checkpoint is kept.
    """
    config = trainer.config
    while trainer.step < config.steps:
        outcome = _train_on_next(trainer)
        trainer.step += 1
        progress.advance(config.batch)
        stopping = stop.requested  # read once: it may change at any moment
        saving = stopping or _is_checkpoint_step(config, trainer.step)
        due = trainer.step % config.log_every == 0 or trainer.step == config.steps
        if due or saving:
            line = _metrics_line(trainer, outcome)
            _require_sound(trainer, line)
            if due:
                append_line(trainer.folder / METRICS, line)
                progress.note(_note(line))
            if saving:
                save(trainer)
        if stopping and trainer.step < config.steps:
            raise Interrupted(
                f"stopped after step {trainer.step:,} of {config.steps:,} and saved; the same command goes on"
            )


def save(trainer: Trainer) -> None:
    """Write a checkpoint of the run as it stands."""
    metrics = trainer.folder / METRICS
    sync(metrics)  # the checkpoint records its size, so it must be on the disk first
    facts: dict[str, Any] = {
        "cursor": trainer.stream.cursor,
        "metrics_bytes": metrics.stat().st_size,
        "skipped": trainer.skipped,
        "threads": torch.get_num_threads(),
    }
    forever = trainer.step == _last_step_before_decay(trainer.config)
    checkpoint = Checkpoint(trainer.step, trainer.state_tensors(), facts)
    save_checkpoint(trainer.folder / CHECKPOINTS, checkpoint, forever, trainer.config.checkpoint_every)


def restore_metrics(folder: Path, size: int) -> None:
    """Cut the metrics back to where a checkpoint was taken, so that no line stands twice.

    Raises:
        DamagedFileError: The file is shorter than the checkpoint says.
    """
    metrics = folder / METRICS
    metrics.touch()
    if (found := metrics.stat().st_size) < size:
        raise DamagedFileError(
            f"{metrics} has {found:,} bytes, but {size:,} were there when the checkpoint was taken; "
            f"remove {folder / CHECKPOINTS} to train again from the start"
        )
    os.truncate(metrics, size)


def encoder_inputs(trainer: Trainer, store: Store, rows: int) -> Iterator[Tensor]:
    """Yield what the encoder sees of about ``rows`` training rows, spread over all, in normalised units."""
    for x in spread_rows(store, store.hook(trainer.config.hook), rows):
        on_device = x.to(trainer.params.b_dec.device)
        yield normalise(on_device, trainer.normalisation)[0] - trainer.params.b_dec.detach()


@dataclass(frozen=True)
class _Outcome:
    result: StepResult
    gradient_norm: Tensor


def _train_on_next(trainer: Trainer) -> _Outcome | None:
    """Train on the next batch; None where it was skipped."""
    config = trainer.config
    batch = trainer.stream.next()
    if not torch.isfinite(batch.x).all():
        _handle_nonfinite(trainer, batch)
        return None
    x = batch.x.to(trainer.params.W_enc.device)
    result = trainer.one_step.run(x, trainer.recipe_state, trainer.tracker, trainer.step)
    norm = trainer.optimiser.step(lr_factor(trainer.step, config.steps, config.schedule))
    trainer.tracker.observe(result.code)
    state = config.recipe.after_step(trainer.params, result.code, trainer.recipe_state, trainer.step)
    trainer.recipe_state = state
    return _Outcome(result, norm)


def _metrics_line(trainer: Trainer, outcome: _Outcome | None) -> dict[str, float | None]:
    """Return the metrics of the step that was just done; those of a skipped batch are None."""
    config = trainer.config
    line: dict[str, float | None] = {
        "step": trainer.step,
        "tokens": trainer.step * config.batch,
        "lr": config.lr * lr_factor(trainer.step - 1, config.steps, config.schedule),
        "dead_fraction": float(trainer.tracker.dead.float().mean()),
        "skipped_batches": trainer.skipped,
    }
    if outcome is None:
        return line | dict.fromkeys(("loss", "fvu", "l0", "aux", "grad_norm"))
    metrics = {name: float(value) for name, value in outcome.result.metrics.items()}
    return line | metrics | {"grad_norm": float(outcome.gradient_norm)}


def _note(line: dict[str, float | None]) -> str:
    if line["fvu"] is None:
        return "batch skipped"
    return f"FVU {line['fvu']:.4f}, dead {line['dead_fraction']:.1%}"


def _require_sound(trainer: Trainer, line: dict[str, float | None]) -> None:
    """Refuse to log or save a run that has diverged, so that the checkpoints that exist stay good."""
    fvu, norm = line["fvu"], line["grad_norm"]
    numbers_are_good = fvu is None or norm is None or (fvu < DIVERGED_FVU and math.isfinite(norm))
    if numbers_are_good and all(torch.isfinite(t).all() for t in trainer.params.named().values()):
        return
    places = finished_checkpoints(trainer.folder / CHECKPOINTS)
    last = f"the last good checkpoint is {places[-1]}" if places else "there was no checkpoint yet"
    raise SaelabError(
        f"training diverged by step {trainer.step:,} (FVU {fvu}, gradient norm {norm}); {last}; "
        f"start a new run with a learning rate below {trainer.config.lr:.2g}"
    )


def _handle_nonfinite(trainer: Trainer, batch: Batch) -> None:
    bad = (~torch.isfinite(batch.x)).any(1).nonzero().squeeze(1)
    if trainer.config.skip_nonfinite:
        trainer.skipped += 1
        return
    place = trainer.folder / NONFINITE / f"step-{trainer.step:06d}.safetensors"
    write_tensors(place, {"x": batch.x, "token_index": batch.token_index})
    raise SaelabError(
        f"step {trainer.step:,}: {len(bad)} of {len(batch.x)} activations hold NaN or inf, the first at token "
        f"{int(batch.token_index[bad[0]]):,} of the store; the batch was saved to {place}; "
        "cache the store again, or leave such batches out with --skip-nonfinite"
    )


def _is_checkpoint_step(config: TrainConfig, step: int) -> bool:
    return step % config.checkpoint_every == 0 or step in (config.steps, _last_step_before_decay(config))


def _last_step_before_decay(config: TrainConfig) -> int:
    return config.steps - round(config.schedule.decay_share * config.steps)


def _normalisation(config: TrainConfig, mean_square_norm: float, d_in: int) -> Normalisation:
    if config.normalisation == "scale":
        return scale_to_unit_coordinates(mean_square_norm, d_in)
    return Normalisation(kind=config.normalisation)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    # A moved tensor keeps its memory order, which matters for W_enc.
    return tensor.to(device, memory_format=torch.preserve_format)
