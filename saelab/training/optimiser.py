"""Adam with the constraint on decoder rows, with clipping, a recipe's own parameters, and a learning-rate schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch

from saelab.sae.autoencoder import SAEParameters
from saelab.training.adam import clip_by_norm, in_memory_order, new_moments, plain_adam
from saelab.training.config import TrainConfig
from saelab.training.recipes.moments import Forward, State, Traits
from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights
from saelab_kernels.backends.stock_adam import normalise_rows, project_out_rows
from saelab_kernels.buffers import GradientBuffers
from saelab_kernels.gradients import code_gradients
from saelab_kernels.shapes import Float, Tensor


@runtime_checkable
class Optimiser(Protocol):
    """Moves the weights of one SAE, in place."""

    def step(self, found: Forward, lr: float) -> Float[Tensor, ""]:
        """Do a step; return the norm of the weights' gradient before clipping."""
        ...

    def state_tensors(self) -> dict[str, Tensor]:
        """Return all that a checkpoint needs besides the weights."""
        ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state_tensors` gave."""
        ...


def make_optimiser(params: SAEParameters, config: TrainConfig) -> Optimiser:
    """Return the optimiser of a run; it changes ``params`` in place.

    One step is: project, clip by the norm of the projected gradient, Adam, renormalise. Adam moves rows a
    little off the sphere even with a projected gradient (its update is not orthogonal), so that the
    renormalisation after it is part of the rule, not a safety net. A recipe's own parameters are clipped
    by the norm of their own gradient (ours: the kernels clip the weights in their own pass).
    """
    weights, options = Weights(**params.named()), _options(config)
    if config.recipe.traits.held_gradients:
        return HeldGradients(weights, options, config.recipe.traits.trained)
    return SparseAdamOnTerms(weights, options)


class SparseAdamOnTerms:
    """The kernels' optimiser: gradients are never held."""

    def __init__(self, weights: Weights, options: AdamOptions) -> None:
        self._adam = SparseAdam(weights, options)

    def step(self, found: Forward, lr: float) -> Float[Tensor, ""]:
        return self._adam.step(found.terms, lr)

    def state_tensors(self) -> dict[str, Tensor]:
        return self._adam.state_tensors()

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._adam.load_state_tensors(tensors)


class HeldGradients:
    """Gradient matrices that a recipe may change before Adam: free decoder norms, gates, tied weights.

    Args:
        weights: Weights.
        options: How they move.
        trained: Names of the weights that Adam moves.
    """

    def __init__(self, weights: Weights, options: AdamOptions, trained: tuple[str, ...]) -> None:
        self._weights, self._options, self._trained = weights, options, trained
        self._gradients = weights.zeros_like()
        self._moments = new_moments(self._moved(weights))

    @torch.no_grad()
    def step(self, found: Forward, lr: float) -> Float[Tensor, ""]:
        self._fill(found)
        gradients = self._moved(self._gradients)
        if self._options.unit_rows:
            project_out_rows(self._gradients.W_dec, self._weights.W_dec)
        norm = clip_by_norm(gradients, self._options.clip)
        plain_adam(self._moved(self._weights), gradients, self._moments, lr, self._options)
        if self._options.unit_rows:
            normalise_rows(self._weights.W_dec)
        return norm

    def state_tensors(self) -> dict[str, Tensor]:
        return dict(self._moments)

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self._moments.items():
            tensor.copy_(tensors[name])

    def _fill(self, found: Forward) -> None:
        """Sum the terms' gradients, then let the recipe change them."""
        held, W_dec = self._gradients, self._weights.W_dec
        for tensor in held.named().values():
            tensor.zero_()
        buffers = GradientBuffers(held.W_enc, held.b_enc, held.W_dec)
        for term in (term.among_all(W_dec.shape[0]) for term in found.terms):
            code_gradients(
                term.code, term.x, W_dec, term.g_out, g_values=term.g_values, buffers=buffers, accumulate=True
            )
            if term.adds_b_dec and term.g_out is not None:
                held.b_dec.add_(term.g_out.sum(0))
        if self._options.input_bias:
            held.b_dec.sub_(self._weights.W_enc @ held.b_enc)
        if found.adjust is not None:
            found.adjust(held)

    def _moved(self, weights: Weights) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in in_memory_order(weights).items() if name in self._trained}


class OwnParameters:
    """Adam on the tensors of a recipe's state that are trained by gradient.

    Args:
        state: The recipe's state before the first step.
        names: Those of its tensors that move.
        config: The run.
    """

    def __init__(self, state: State, names: tuple[str, ...], config: TrainConfig) -> None:
        self._names, self._options = names, _options(config)
        self._moments = new_moments({name: state[name] for name in names})

    @torch.no_grad()
    def step(self, state: State, gradients: Mapping[str, Tensor], lr: float) -> None:
        """Move them in place; one without a gradient in this step is moved by its moments."""
        if not self._names:
            return
        found = {name: gradients.get(name, torch.zeros_like(state[name])) for name in self._names}
        clip_by_norm(found, self._options.clip)
        plain_adam({name: state[name] for name in self._names}, found, self._moments, lr, self._options)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return all that a checkpoint needs besides the state."""
        return dict(self._moments)

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state_tensors` gave."""
        for name, tensor in self._moments.items():
            tensor.copy_(tensors[name])


def lr_factor(step: int, config: TrainConfig) -> float:
    """Return the share of the peak learning rate at a step: linear rise, constant, linear fall to 0.

    The rise is a share of the run's first length and the fall one of its present length, so that a
    run and its extension are the same up to where the shorter one began to fall.
    """
    warmup = round(config.schedule.warmup_share * config.first_steps)
    decay = config.steps - config.branch_steps[-1]
    rising = (step + 1) / warmup if step < warmup else 1.0
    falling = (config.steps - step) / decay if decay and step > config.steps - decay else 1.0
    return min(rising, falling)


def _options(config: TrainConfig) -> AdamOptions:
    traits: Traits = config.recipe.traits
    return AdamOptions(
        beta1=traits.beta1,
        beta2=traits.beta2,
        clip=config.grad_clip,
        unit_rows=traits.unit_rows,
        input_bias=traits.input_bias,
    )
