"""One training step up to its gradients: the recipe's forward pass, and AuxK beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from saelab.sae.autoencoder import SAEParameters
from saelab.training.dead import DeadFeatureTracker
from saelab.training.objectives import aux_k as aux_k_loss
from saelab.training.recipes.base import Recipe
from saelab.training.recipes.moments import AuxFeatures, Clock, Forward, Inputs, State
from saelab.training.views import HookRows, Views
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.decode import decode_error
from saelab_kernels.gradients import pair_products
from saelab_kernels.shapes import Tensor


@dataclass(frozen=True)
class StepResult:
    """What a step found, on the device; read the metrics only when a line of them is due."""

    found: Forward
    """The recipe's forward pass; its terms hold AuxK's as well."""
    metrics: dict[str, Tensor]
    """0-dimensional tensors: ``loss``, ``fvu``, ``l0``, ``aux``, and the recipe's own terms."""


@dataclass
class Step:
    """The forward pass of a batch and the gradients of its small leaves, for any recipe."""

    params: SAEParameters
    recipe: Recipe
    views: Views
    variance: float
    """Total variance of the normalised target; fixed, so that the loss does not depend on the batch."""
    aux_k: int
    aux_coefficient: float

    def run(
        self, rows: Mapping[str, HookRows], state: State, tracker: DeadFeatureTracker, clock: Clock
    ) -> StepResult:
        """Compute the loss of raw activations and the gradients that the optimiser goes on from."""
        params, traits = self.params, self.recipe.traits
        b_dec = params.b_dec if traits.input_bias else None
        inputs = self.recipe.prepare(self.views.batch(rows, b_dec, gradients=traits.loss_gradients), state)
        found = self.recipe.forward(inputs, params, state, clock, self.variance)
        aux = torch.zeros((), device=inputs.target.device)
        if self.aux_coefficient and traits.aux:
            spare = self.recipe.aux(inputs, params, tracker, state, self.aux_k)
            if spare is not None:
                aux, term = aux_term(spare, inputs, -found.error, self.aux_coefficient)
                found.terms.append(term)
        metrics = {
            "loss": found.loss.total + self.aux_coefficient * aux,
            "fvu": found.squares.sum() / (len(inputs.target) * self.variance),
            "l0": found.code.l0().float().mean(),
            "aux": aux,
        }
        return StepResult(found, metrics | found.loss.terms)


def aux_term(
    spare: AuxFeatures, inputs: Inputs, residual: Tensor, coefficient: float
) -> tuple[Tensor, GradientTerm]:
    """Return AuxK's loss and its gradient term.

    Args:
        spare: The features that try to explain the residual.
        inputs: The batch.
        residual: What the main reconstruction leaves, ``[tokens, d_out]``, detached.
        coefficient: Weight of AuxK in the loss; the returned loss is without it.
    """
    code, weights = spare.code, None
    if spare.weights is not None:
        weights = spare.weights[code.columns.long()]
        code = code.with_values(code.values * weights)
    error, squares = decode_error(code, spare.W_dec, None, residual)
    loss = aux_k_loss(error.requires_grad_(), squares, residual)
    (coefficient * loss).backward()
    g_out, g_values = error.grad, None
    if weights is not None and g_out is not None:
        # The values that were decoded are weights * z: the chain rule's factor, which the kernels do not know.
        g_values = (weights - 1) * pair_products(code, spare.W_dec, g_out)
    term = GradientTerm(code, inputs.encoder, g_out, g_values, adds_b_dec=False, features=spare.features)
    return loss.detach(), term
