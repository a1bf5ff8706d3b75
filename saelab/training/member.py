"""One SAE while it is trained: weights, moments, counters and its recipe's state, and the step that moves them.

A member knows nothing of the others that are trained on the same pass, so that it ends with the same
bits as if it were alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from saelab.activations.source import ActivationSource
from saelab.errors import SaelabError
from saelab.sae.autoencoder import SAEParameters
from saelab.sae.config import Normalisation
from saelab.sae.normalisation import normalise, scale_to_unit_coordinates
from saelab.training.config import TrainConfig
from saelab.training.dead import DeadFeatureTracker
from saelab.training.initialise import MEDIAN_SAMPLE, initial_parameters
from saelab.training.optimiser import lr_factor, make_optimiser
from saelab.training.recipes.base import State
from saelab.training.step import Step, StepResult
from saelab.training.warm_start import WarmStart, parameters_from
from saelab_kernels.adam import SparseAdam
from saelab_kernels.shapes import Float, Tensor

METRICS, NONFINITE = "metrics.jsonl", "nonfinite"
DIVERGED_FVU = 1e3

MetricsLine = dict[str, float | None]


@dataclass(frozen=True)
class _Outcome:
    result: StepResult
    gradient_norm: Tensor


@dataclass
class Member:
    """The moving parts of one SAE; `state_tensors` and `restore` hold all of them."""

    name: str
    """What a checkpoint calls it."""
    config: TrainConfig
    folder: Path
    """Its run folder."""
    params: SAEParameters
    normalisation: Normalisation
    recipe_state: State
    tracker: DeadFeatureTracker
    optimiser: SparseAdam
    one_step: Step
    step: int = 0
    skipped: int = 0
    outcome: _Outcome | None = None
    """What the last step found; None where its batch was skipped."""

    def train_on(self, x: Float[Tensor, "tokens d_in"]) -> None:
        """Do one step on raw activations; nothing is computed about it until `metrics` asks."""
        result = self.one_step.run(x.to(self.params.W_enc.device), self.recipe_state, self.tracker, self.step)
        norm = self.optimiser.step(result.terms, self.config.lr * lr_factor(self.step, self.config))
        self.tracker.observe(result.code)
        self.recipe_state = self.config.recipe.after_step(
            self.params, result.code, self.recipe_state, self.step
        )
        self.outcome = _Outcome(result, norm)
        self.step += 1

    def skip(self) -> None:
        """Count a batch that is left out."""
        self.skipped += 1
        self.step += 1
        self.outcome = None

    def metrics(self) -> MetricsLine:
        """Return the metrics of the step that was just done; those of a skipped batch are None."""
        config = self.config
        line: MetricsLine = {
            "step": self.step,
            "tokens": self.step * config.batch,
            "lr": config.lr * lr_factor(self.step - 1, config),
            "dead_fraction": float(self.tracker.dead.float().mean()),
            "skipped_batches": self.skipped,
        }
        if self.outcome is None:
            return line | dict.fromkeys(("loss", "fvu", "l0", "aux", "grad_norm"))
        found = {name: float(value) for name, value in self.outcome.result.metrics.items()}
        return line | found | {"grad_norm": float(self.outcome.gradient_norm)}

    def divergence(self, line: MetricsLine) -> str | None:
        """Say in words that the run has diverged, or return None."""
        fvu, norm = line["fvu"], line["grad_norm"]
        numbers_are_good = fvu is None or norm is None or (fvu < DIVERGED_FVU and math.isfinite(norm))
        if numbers_are_good and all(torch.isfinite(t).all() for t in self.params.named().values()):
            return None
        return f"diverged by step {self.step:,} (FVU {fvu}, gradient norm {norm})"

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint must hold, by dotted names."""
        return (
            {f"params.{name}": tensor.detach() for name, tensor in self.params.named().items()}
            | {f"adam.{name}": tensor for name, tensor in self.optimiser.state_tensors().items()}
            | {f"recipe.{name}": tensor for name, tensor in self.recipe_state.items()}
            | {"tokens_since_fired": self.tracker.tokens_since_fired}
        )

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], step: int, skipped: int) -> None:
        """Continue from what a checkpoint of the same configuration holds."""
        for name, tensor in self.params.named().items():
            tensor.copy_(tensors[f"params.{name}"])
        self.optimiser.load_state_tensors(_under("adam.", tensors))
        device = self.tracker.tokens_since_fired.device
        self.recipe_state = {name: tensor.to(device) for name, tensor in _under("recipe.", tensors).items()}
        self.tracker.tokens_since_fired.copy_(tensors["tokens_since_fired"])
        self.step, self.skipped = step, skipped


def make_member(
    name: str, config: TrainConfig, source: ActivationSource, folder: Path, warm: WarmStart | None = None
) -> Member:
    """Build an SAE before its first step; the same configuration and source give the same bits.

    Raises:
        SaelabError: The activations are constant or all zero.
    """
    hook, statistics = source.hook(config.hook), source.statistics(config.hook)
    device = torch.device(config.device)
    sample = torch.cat(list(source.spread_rows(config.hook, MEDIAN_SAMPLE)))
    how = _normalisation(config, statistics.mean_square_norm, hook.d_in)
    normalised = normalise(sample, how)[0]
    params = (
        initial_parameters(normalised, config.width, config.seed)
        if warm is None
        else parameters_from(warm, how)
    )
    params = SAEParameters(**{key: _to(tensor, device) for key, tensor in params.named().items()})
    variance = (
        float((normalised - normalised.mean(0)).square().sum(1).mean())
        if how.is_per_token
        else statistics.variance * how.factor**2
    )
    if not variance > 0:
        raise SaelabError(f"the activations of {config.hook} are constant: there is nothing to learn")
    return Member(
        name=name,
        config=config,
        folder=folder,
        params=params,
        normalisation=how,
        recipe_state=config.recipe.init(params, statistics),
        tracker=DeadFeatureTracker.new(config.width, config.dead, config.lengths[0], device),
        optimiser=make_optimiser(params, config),
        one_step=Step(
            params=params,
            recipe=config.recipe,
            normalisation=how,
            variance=variance,
            aux_k=config.dead.aux_k or max(1, hook.d_in // 2),
            aux_coefficient=config.dead.coefficient,
        ),
    )


def _normalisation(config: TrainConfig, mean_square_norm: float, d_in: int) -> Normalisation:
    if config.normalisation == "scale":
        return scale_to_unit_coordinates(mean_square_norm, d_in)
    return Normalisation(kind=config.normalisation)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    # A moved tensor keeps its memory order, which matters for W_enc.
    return tensor.to(device, memory_format=torch.preserve_format)
