"""One training step up to its gradients: forward through the kernels, autograd over small leaves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelab.sae.autoencoder import SAEParameters
from saelab.sae.config import Normalisation
from saelab.sae.normalisation import normalise
from saelab.training.dead import DeadFeatureTracker, aux_features
from saelab.training.objectives import aux_k as aux_k_loss
from saelab.training.recipes.base import Leaves, Recipe, State
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.code import SparseCode
from saelab_kernels.decode import decode_error
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True)
class StepResult:
    """What a step found, on the device; read the metrics only when a line of them is due."""

    code: SparseCode
    terms: list[GradientTerm]
    """What the optimiser needs: each decode with the gradient of what came out."""
    metrics: dict[str, Tensor]
    """0-dimensional tensors: ``loss``, ``fvu``, ``l0``, ``aux``, and the recipe's own terms."""


@dataclass
class Step:
    """The forward pass of a batch and the gradients of its small leaves, for any recipe.

    No ``[tokens, d_sae]`` matrix is kept.
    """

    params: SAEParameters
    recipe: Recipe
    normalisation: Normalisation
    variance: float
    """Total variance of the normalised target; fixed, so that the loss does not depend on the batch."""
    aux_k: int
    aux_coefficient: float

    def run(
        self, x: Float[Tensor, "tokens d_in"], state: State, tracker: DeadFeatureTracker, step: int
    ) -> StepResult:
        """Compute the loss of raw activations and the gradients that the optimiser goes on from."""
        params = self.params
        target = normalise(x, self.normalisation)[0]
        encoder_input = target - params.b_dec
        rule, tensors = self.recipe.rule(state, step)
        code = encode_select(
            encoder_input, params.W_enc, params.b_enc, rule, sort=False, **tensors._asdict()
        ).code
        error, squares = decode_error(code, params.W_dec, params.b_dec, target)

        leaf = code.with_values(code.values.detach().requires_grad_())
        leaves = Leaves(target, error.requires_grad_(), squares, leaf)
        loss = self.recipe.objective(leaves, state, self.variance)
        total, aux, spare = loss.total, torch.zeros((), device=x.device), None
        if self.aux_coefficient:
            spare = aux_features(encoder_input, params, tracker.dead, self.aux_k)
        aux_error = None
        if spare is not None:
            residual = -error.detach()
            aux_error, aux_squares = decode_error(spare.code, spare.W_dec, None, residual)
            aux = aux_k_loss(aux_error.requires_grad_(), aux_squares, residual)
            total = total + self.aux_coefficient * aux
        total.backward()

        terms = [GradientTerm(code, encoder_input, error.grad, leaf.values.grad)]
        if spare is not None and aux_error is not None:
            terms.append(
                GradientTerm(
                    spare.code, encoder_input, aux_error.grad, adds_b_dec=False, features=spare.features
                )
            )
        metrics = {
            "loss": total.detach(),
            "fvu": squares.sum() / (len(target) * self.variance),
            "l0": code.l0().float().mean(),
            "aux": aux.detach(),
        }
        return StepResult(code, terms, metrics | loss.terms)
