"""The training loop: stream, step, optimiser, counters, metrics, checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saelab.activations.store import Store
from saelab.activations.stream import Batch, StoreStream
from saelab.errors import Interrupted, SaelabError
from saelab.interrupts import StopRequest
from saelab.progress import Progress
from saelab.sae.autoencoder import SAEParameters
from saelab.sae.config import Normalisation
from saelab.sae.normalisation import normalise, scale_to_unit_coordinates
from saelab.storage.files import append_line
from saelab.storage.tensors import write_tensors
from saelab.training.checkpoints import Checkpoint, save_checkpoint
from saelab.training.config import TrainConfig
from saelab.training.dead import DeadFeatureTracker
from saelab.training.initialise import MEDIAN_SAMPLE, initial_parameters
from saelab.training.optimiser import ConstrainedAdam, lr_factor
from saelab.training.recipes.base import State
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
        self.recipe_state = _under("recipe.", tensors)
        self.tracker.tokens_since_fired.copy_(tensors["tokens_since_fired"])
        self.step, self.skipped = checkpoint.step, checkpoint.facts["skipped"]


def make_trainer(config: TrainConfig, store: Store, folder: Path, cursor: int = 0) -> Trainer:
    """Build a trainer before its first step; the same configuration and store give the same bits."""
    hook = store.hook(config.hook)
    statistics = store.statistics(hook)
    device = torch.device(config.device)
    sample = store.rows(hook, "train", 0, min(MEDIAN_SAMPLE, store.n_rows(hook, "train"))).x
    how = _normalisation(config, statistics.mean_square_norm, hook.d_in)
    normalised = normalise(sample[torch.isfinite(sample).all(1)], how)[0]
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
        batch = trainer.stream.next()
        if torch.isfinite(batch.x).all():
            _train_on(trainer, batch, progress)
        else:
            _handle_nonfinite(trainer, batch)
        trainer.step += 1
        progress.advance(config.batch)
        regular = trainer.step % config.checkpoint_every == 0 or trainer.step == config.steps
        if regular or trainer.step == _last_step_before_decay(config) or stop.requested:
            save(trainer)
        if stop.requested and trainer.step < config.steps:
            raise Interrupted(
                f"stopped after step {trainer.step:,} of {config.steps:,} and saved; the same command goes on"
            )


def save(trainer: Trainer) -> None:
    """Write a checkpoint of the run as it stands."""
    metrics = trainer.folder / METRICS
    facts: dict[str, Any] = {
        "cursor": trainer.stream.cursor,
        "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
        "skipped": trainer.skipped,
        "threads": torch.get_num_threads(),
    }
    forever = trainer.step == _last_step_before_decay(trainer.config)
    checkpoint = Checkpoint(trainer.step, trainer.state_tensors(), facts)
    save_checkpoint(trainer.folder / CHECKPOINTS, checkpoint, forever, trainer.config.checkpoint_every)


def restore_metrics(folder: Path, size: int) -> None:
    """Cut the metrics back to where a checkpoint was taken, so that no line stands twice."""
    metrics = folder / METRICS
    if metrics.exists():
        os.truncate(metrics, size)


def encoder_inputs(trainer: Trainer, store: Store, rows: int, tile: int = 4096) -> Iterator[Tensor]:
    """Yield what the encoder sees of the first ``rows`` training rows, in normalised units."""
    hook = store.hook(trainer.config.hook)
    total = min(rows, store.n_rows(hook, "train"))
    for start in range(0, total, tile):
        x = store.rows(hook, "train", start, min(start + tile, total)).x.to(trainer.params.b_dec.device)
        x = x[torch.isfinite(x).all(1)]
        yield normalise(x, trainer.normalisation)[0] - trainer.params.b_dec.detach()


def _train_on(trainer: Trainer, batch: Batch, progress: Progress) -> None:
    config = trainer.config
    x = batch.x.to(trainer.params.W_enc.device)
    result = trainer.one_step.run(x, trainer.recipe_state, trainer.tracker, trainer.step)
    norm = trainer.optimiser.step(lr_factor(trainer.step, config.steps, config.schedule))
    trainer.tracker.observe(result.code)
    trainer.recipe_state = config.recipe.after_step(
        trainer.params, result.code, trainer.recipe_state, trainer.step
    )
    due = (trainer.step + 1) % config.log_every == 0 or trainer.step + 1 == config.steps
    if due:
        line = _metrics_line(trainer, result, norm)
        _check_not_diverged(trainer, line)
        append_line(trainer.folder / METRICS, line)
        progress.note(f"FVU {line['fvu']:.4f}, dead {line['dead_fraction']:.1%}")


def _metrics_line(trainer: Trainer, result: StepResult, norm: Tensor) -> dict[str, float]:
    config = trainer.config
    return {
        "step": trainer.step + 1,
        "tokens": (trainer.step + 1) * config.batch,
        "lr": config.lr * lr_factor(trainer.step, config.steps, config.schedule),
        "grad_norm": float(norm),
        "dead_fraction": float(trainer.tracker.dead.double().mean()),
        "skipped_batches": trainer.skipped,
    } | {name: float(value) for name, value in result.metrics.items()}


def _check_not_diverged(trainer: Trainer, line: dict[str, float]) -> None:
    if not line["fvu"] < DIVERGED_FVU or line["grad_norm"] != line["grad_norm"]:
        raise SaelabError(
            f"training diverged at step {line['step']:,}: FVU {line['fvu']:.3g}, gradient norm "
            f"{line['grad_norm']:.3g}; the last good checkpoint is in {trainer.folder / CHECKPOINTS}; "
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
