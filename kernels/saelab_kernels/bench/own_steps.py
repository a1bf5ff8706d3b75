"""The training step that is timed: with the sparse operators, and the same step as dense autograd would do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights
from saelab_kernels.backends.stock_adam import normalise_rows, project_out_rows
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.code import SparseCode
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


def sparse_step(
    W_dec: Float[Tensor, "d_sae d_in"], options: StepOptions, backend: str | None
) -> StepFunction:
    """The step with the operators of a backend, from `W_dec` (kept and changed), its transpose and zero biases."""
    zeros = W_dec.new_zeros
    weights = Weights(W_dec.clone().t(), zeros(W_dec.shape[0]), W_dec, zeros(W_dec.shape[1]))
    adam = SparseAdam(weights, AdamOptions(clip=options.clip), backend)
    rule, aux_rule = PerToken(options.k), PerToken(options.aux_k)

    def step(x: Tensor) -> Tensor:
        centred = x - weights.b_dec
        code = encode_select(centred, weights.W_enc, weights.b_enc, rule, sort=False, backend=backend).code
        error, squares = decode_error(code, weights.W_dec, weights.b_dec, x, backend)
        terms = []
        if options.dead is not None:
            aux = encode_select(
                centred,
                weights.W_enc,
                weights.b_enc,
                aux_rule,
                columns=options.dead,
                sort=False,
                backend=backend,
            ).code
            terms.append(_aux_term(aux, centred, error, weights, options, backend))
        terms.insert(0, GradientTerm(code, centred, error.mul_(2 / len(x))))
        adam.step(terms, options.lr)
        return squares.mean()

    return step


def _aux_term(
    aux: SparseCode, x: Tensor, error: Tensor, weights: Weights, options: StepOptions, backend: str | None
) -> GradientTerm:
    """The part of the loss in which dead features reconstruct what is missing, `-error`."""
    aux_error, _ = decode_error(aux, weights.W_dec, None, -error, backend)
    return GradientTerm(aux, x, aux_error.mul_(2 * options.aux_coefficient / len(x)), adds_b_dec=False)


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
