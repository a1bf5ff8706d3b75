"""One training step: forward through the kernels, autograd over small leaves, gradients into reused buffers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelab.sae.autoencoder import SAEParameters
from saelab.sae.config import Normalisation
from saelab.sae.normalisation import normalise
from saelab.training.dead import DeadFeatureTracker, aux_code
from saelab.training.objectives import aux_k as aux_k_loss
from saelab.training.recipes.base import Leaves, Recipe, State
from saelab_kernels.code import SparseCode
from saelab_kernels.decode import decode
from saelab_kernels.buffers import GradientBuffers
from saelab_kernels.gradients import code_gradients
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True)
class StepResult:
    """What a step found, on the device; read it only when a line of metrics is due."""

    code: SparseCode
    metrics: dict[str, Tensor]
    """0-dimensional tensors: ``loss``, ``fvu``, ``l0``, ``aux``, and the recipe's own terms."""


@dataclass
class Step:
    """The forward and backward pass of a batch, for any recipe.

    Gradients of `W_enc`, `b_enc` and `W_dec` end in ``buffers``, that of `b_dec` in
    ``b_dec_gradient``. No ``[tokens, d_sae]`` matrix is kept.
    """

    params: SAEParameters
    recipe: Recipe
    buffers: GradientBuffers
    b_dec_gradient: Float[Tensor, " d_out"]
    normalisation: Normalisation
    variance: float
    """Total variance of the normalised target; fixed, so that the loss does not depend on the batch."""
    aux_k: int
    aux_coefficient: float

    def run(
        self, x: Float[Tensor, "tokens d_in"], state: State, tracker: DeadFeatureTracker, step: int
    ) -> StepResult:
        """Compute the loss of raw activations and its gradients."""
        target = normalise(x, self.normalisation)[0]
        encoder_input = target - self.params.b_dec.detach()
        rule, tensors = self.recipe.rule(state, step)
        with torch.no_grad():
            code = encode_select(
                encoder_input, self.params.W_enc, self.params.b_enc, rule, **tensors._asdict()
            ).code
            x_hat = decode(code, self.params.W_dec, self.params.b_dec)
            spare = (
                aux_code(encoder_input, self.params, tracker.dead, self.aux_k)
                if self.aux_coefficient
                else None
            )
            e_hat = None if spare is None else decode(spare, self.params.W_dec)

        leaves = Leaves(target, x_hat.requires_grad_(), code.with_values(code.values.requires_grad_()))
        loss = self.recipe.objective(leaves, state, self.variance)
        total, aux = loss.total, torch.zeros((), device=x.device)
        if e_hat is not None:
            aux = aux_k_loss((target - x_hat).detach(), e_hat.requires_grad_())
            total = total + self.aux_coefficient * aux
        total.backward()
        self._gradients(encoder_input, leaves, spare, e_hat)
        return StepResult(code, self._metrics(leaves, total, aux) | loss.terms)

    @torch.no_grad()
    def _gradients(
        self, encoder_input: Tensor, leaves: Leaves, spare: SparseCode | None, e_hat: Tensor | None
    ) -> None:
        W_dec, buffers = self.params.W_dec, self.buffers
        code_gradients(
            leaves.code,
            encoder_input,
            W_dec,
            leaves.x_hat.grad,
            g_values=leaves.code.values.grad,
            buffers=buffers,
        )
        if spare is not None and e_hat is not None:
            code_gradients(spare, encoder_input, W_dec, e_hat.grad, buffers=buffers, accumulate=True)
        # b_dec acts twice: it is added to the output, and taken from the encoder's input.
        torch.mv(self.params.W_enc, buffers.b_enc, out=self.b_dec_gradient)
        self.b_dec_gradient.neg_()
        if leaves.x_hat.grad is not None:
            self.b_dec_gradient += leaves.x_hat.grad.sum(0)

    @torch.no_grad()
    def _metrics(self, leaves: Leaves, total: Tensor, aux: Tensor) -> dict[str, Tensor]:
        error = (leaves.target - leaves.x_hat).square().sum() / len(leaves.target)
        return {
            "loss": total.detach(),
            "fvu": error / self.variance,
            "l0": leaves.code.l0().float().mean(),
            "aux": aux.detach(),
        }
