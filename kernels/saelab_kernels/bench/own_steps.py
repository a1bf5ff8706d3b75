"""The training step that is timed: with the sparse operators, and the same step as dense autograd would do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights
from saelab_kernels.backends.stock_adam import normalise_rows, project_out_rows
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.decode import decode_error
from saelab_kernels.rules import PerToken
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Float, Int, Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class StepOptions:
    """TopK, Adam on all four weights, decoder rows of norm 1, and what a variant adds."""

    k: int
    """Features kept for a token."""
    lr: float
    """Learning rate."""
    clip: float | None = None
    """Norm that the gradient is clipped at."""
    dead: Int[Tensor, " n_dead"] | None = None
    """int64; features that AuxK revives (Gao et al. 2024, arXiv 2406.04093, A.2); None leaves AuxK out."""
    aux_k: int = 1
    """Of them, those picked for a token."""
    aux_coefficient: float = 1 / 32
    """Weight of AuxK's squared error of a token beside the main one."""


StepFunction = Callable[[Float[Tensor, "rows d_in"]], Float[Tensor, ""]]
"""One step on a batch; gives the mean squared error of a token before it."""


class SparseStep:
    """The step with the operators of a backend; call it with a batch (see `StepFunction`).

    Args:
        W_dec: Kept and changed; the encoder begins as its transpose, the biases as zeros.
        options: What the step does.
        backend: Of all operators; None chooses by the device.
    """

    def __init__(self, W_dec: Float[Tensor, "d_sae d_in"], options: StepOptions, backend: str | None) -> None:
        zeros = W_dec.new_zeros
        self._weights = Weights(W_dec.clone().t(), zeros(W_dec.shape[0]), W_dec, zeros(W_dec.shape[1]))
        self._adam = SparseAdam(self._weights, AdamOptions(clip=options.clip), backend)
        self._options, self._backend = options, backend

    def __call__(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, ""]:
        weights, options = self._weights, self._options
        centred = x - weights.b_dec
        rule = PerToken(options.k)
        found = encode_select(centred, weights.W_enc, weights.b_enc, rule, sort=False, backend=self._backend)
        code = found.code
        error, squares = decode_error(code, weights.W_dec, weights.b_dec, x, self._backend)
        # What AuxK needs of the error comes first: the error then becomes the gradient in place.
        aux = [] if options.dead is None else [self._aux_term(centred, error, options.dead)]
        self._adam.step([GradientTerm(code, centred, error.mul_(2 / len(x))), *aux], options.lr)
        return squares.mean()

    def state(self) -> list[Tensor]:
        """All tensors that a step changes in place."""
        return [*self._weights.named().values(), *self._adam.state_tensors().values()]

    def _aux_term(self, x: Tensor, error: Tensor, dead: Tensor) -> GradientTerm:
        """The part of the loss in which dead features reconstruct what is missing, `-error`."""
        weights, rule = self._weights, PerToken(self._options.aux_k)
        W_enc, b_enc = weights.W_enc.t().index_select(0, dead).t(), weights.b_enc[dead]
        code = encode_select(x, W_enc, b_enc, rule, sort=False, backend=self._backend).code
        W_dec = weights.W_dec.index_select(0, dead)
        aux_error, _ = decode_error(code, W_dec, None, -error, self._backend)
        factor = 2 * self._options.aux_coefficient / len(x)
        return GradientTerm(code, x, aux_error.mul_(factor), adds_b_dec=False, features=dead)


def captured_step(W_dec: Float[Tensor, "d_sae d_in"], options: StepOptions, batch: int) -> StepFunction:
    """`SparseStep` with backend "triton" on CUDA, recorded once for batches of so many rows, then replayed."""
    from saelab_kernels.backends.triton.graph import CapturedStep

    step = SparseStep(W_dec, options, "triton")
    return CapturedStep(step, [W_dec.new_zeros(batch, W_dec.shape[1])], step.state())


def dense_step(
    W_dec: Float[Tensor, "d_sae d_in"], options: StepOptions, autocast: torch.dtype | None = None
) -> StepFunction:
    """The same step as it is usually written: dense autograd and torch's default Adam."""
    zeros = W_dec.new_zeros
    start = (W_dec.t().contiguous(), zeros(W_dec.shape[0]), W_dec, zeros(W_dec.shape[1]))
    W_enc, b_enc, W_dec, b_dec = leaves = [tensor.requires_grad_() for tensor in start]
    adam = torch.optim.Adam(leaves, lr=options.lr)

    def loss_of(x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x - b_dec) @ W_enc + b_enc
        error = _keep(z, options.k) @ W_dec + b_dec - x
        main = error.square().sum(dim=1).mean()
        if options.dead is None:
            return main, main
        # Gathered columns and rows cost less than a mask over all features.
        aux = _keep(z[:, options.dead], options.aux_k) @ W_dec[options.dead] + error.detach()
        return main, main + options.aux_coefficient * aux.square().sum(dim=1).mean()

    def step(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
            main, loss = loss_of(x)
        adam.zero_grad()
        loss.backward()
        assert W_dec.grad is not None
        project_out_rows(W_dec.grad, W_dec)
        if options.clip is not None:
            torch.nn.utils.clip_grad_norm_(leaves, options.clip)
        adam.step()
        with torch.no_grad():
            normalise_rows(W_dec)
        return main.detach()

    return step


def _keep(z: Tensor, k: int) -> Tensor:
    top = torch.relu(z).topk(k, dim=1)
    return torch.zeros_like(z).scatter(1, top.indices, top.values)
