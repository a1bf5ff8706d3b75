"""One SAE while it is trained: weights, moments, counters and its recipe's state, and the step that moves them.

A member knows nothing of the others that are trained on the same pass, so that it ends with the same
bits as if it were alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from saelab.activations.source import ActivationSource
from saelab.errors import SaelabError
from saelab.sae.autoencoder import SAEParameters
from saelab.training.config import TrainConfig
from saelab.training.dead import DeadFeatureTracker
from saelab.training.initialise import MEDIAN_SAMPLE, initial_parameters
from saelab.training.optimiser import Optimiser, OwnParameters, lr_factor, make_optimiser
from saelab.training.recipes.moments import Clock, Setup, State
from saelab.training.step import Step, StepResult
from saelab.training.views import HookRows, Scaled, Views
from saelab.training.warm_start import WarmStart, parameters_from
from saelab_kernels.shapes import Tensor

METRICS, NONFINITE = "metrics.jsonl", "nonfinite"
DIVERGED_FVU = 1e3
STEP_METRICS = ("loss", "fvu", "l0", "aux")

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
    views: Views
    recipe_state: State
    tracker: DeadFeatureTracker
    optimiser: Optimiser
    own_parameters: OwnParameters
    one_step: Step
    step: int = 0
    skipped: int = 0
    outcome: _Outcome | None = None
    """What the last step found; None where its batch was skipped."""

    @property
    def clock(self) -> Clock:
        """Where in its run the next step is."""
        return Clock(self.step, self.config.first_steps, self.config.batch)

    def train_on(self, rows: Mapping[str, HookRows]) -> None:
        """Do one step on raw activations; nothing is computed about it until `metrics` asks."""
        clock = self.clock
        result = self.one_step.run(rows, self.recipe_state, self.tracker, clock)
        lr = self.config.lr * lr_factor(self.step, self.config)
        norm = self.optimiser.step(result.found, lr)
        self.own_parameters.step(self.recipe_state, result.found.own, lr)
        self.tracker.observe(result.found.code)
        self.recipe_state = self.config.recipe.after_step(self.params, result.found, self.recipe_state, clock)
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
            return line | dict.fromkeys((*STEP_METRICS, "grad_norm"))
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
            | {f"own.{name}": tensor for name, tensor in self.own_parameters.state_tensors().items()}
            | {f"recipe.{name}": tensor for name, tensor in self.recipe_state.items()}
            | {"tokens_since_fired": self.tracker.tokens_since_fired}
        )

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], step: int, skipped: int) -> None:
        """Continue from what a checkpoint of the same configuration holds."""
        for name, tensor in self.params.named().items():
            tensor.copy_(tensors[f"params.{name}"])
        self.optimiser.load_state_tensors(_under("adam.", tensors))
        self.own_parameters.load_state_tensors(_under("own.", tensors))
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
    device = torch.device(config.device)
    views = Views.of(config, source)
    sample = _joined_sample(views, source)
    variance = _target_variance(views, sample, source)
    if not variance > 0:
        raise SaelabError(
            f"the activations of {', '.join(config.target_hooks)} are constant: there is nothing to learn"
        )
    params = (
        initial_parameters(
            sample.inputs, sample.targets, config.width, config.seed, tied=views.is_autoencoder
        )
        if warm is None
        else parameters_from(warm, views.inputs[0].normalisation)
    )
    setup = Setup(
        clock=Clock(0, config.first_steps, config.batch),
        d_in=views.d_in,
        d_out=views.d_out,
        d_sae=config.width,
        variance=variance,
        inputs=sample.inputs,
        targets=sample.targets,
        input_widths=tuple(view.width for view in views.inputs),
        seed=config.seed,
        warm=warm is not None,
    )
    state = config.recipe.init(params, setup)
    # A moved tensor keeps its memory order, which matters for W_enc.
    params = SAEParameters(**{key: _to(tensor, device) for key, tensor in params.named().items()})
    state = {key: _to(tensor, device) for key, tensor in state.items()}
    return Member(
        name=name,
        config=config,
        folder=folder,
        params=params,
        views=views,
        recipe_state=state,
        tracker=DeadFeatureTracker.new(config.width, config.dead, config.lengths[0], device),
        optimiser=make_optimiser(params, config),
        own_parameters=OwnParameters(state, config.recipe.traits.own_parameters, config),
        one_step=Step(
            params=params,
            recipe=config.recipe,
            views=views,
            variance=variance,
            aux_k=config.dead.aux_k or max(1, views.d_out // 2),
            aux_coefficient=config.dead.coefficient,
        ),
    )


def _joined_sample(views: Views, source: ActivationSource) -> Scaled:
    parts = list(views.spread(source, MEDIAN_SAMPLE, "cpu"))
    inputs = torch.cat([part.inputs for part in parts])
    return Scaled(inputs, inputs if views.is_autoencoder else torch.cat([part.targets for part in parts]))


def _target_variance(views: Views, sample: Scaled, source: ActivationSource) -> float:
    """Return the total variance of the normalised target: the data's, or the sample's where tokens are scaled."""
    if any(view.normalisation.is_per_token for view in views.targets):
        return float((sample.targets - sample.targets.mean(0)).square().sum(1).mean())
    return sum(source.statistics(v.hook).variance * v.normalisation.factor**2 for v in views.targets)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    # A moved tensor keeps its memory order, which matters for W_enc.
    return tensor.to(device, memory_format=torch.preserve_format)
