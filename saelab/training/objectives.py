"""Terms of the training objective, each a function of small leaves."""

from __future__ import annotations

from typing import Any

import torch

from saelab_kernels.shapes import Float, Tensor


class _SumOfSquares(torch.autograd.Function):
    """The sum of squares of a matrix whose rows' sums are known already: nothing to compute, one pass backward."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, row_squares: Tensor) -> Tensor:
        ctx.save_for_backward(matrix)
        return row_squares.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * (2 * gradients[0]), None


def normalised_mse(
    error: Float[Tensor, "tokens d_out"], squares: Float[Tensor, " tokens"], variance: float
) -> Float[Tensor, ""]:
    """Return `mean_b |x_b - x_hat_b|^2 / Var(x)` with a fixed total variance (paper: Gao et al. 2024, 2406.04093).

    Args:
        error: `x_hat - x`.
        squares: `|error|^2` of each token.
        variance: Total variance of the target.
    """
    return _SumOfSquares.apply(error, squares) / (len(error) * variance)


def aux_k(
    aux_error: Float[Tensor, "tokens d_out"],
    squares: Float[Tensor, " tokens"],
    residual: Float[Tensor, "tokens d_out"],
) -> Float[Tensor, ""]:
    """Return AuxK, `mean|e - e_hat|^2 / mean|e - mean e|^2` (paper: Gao et al. 2024; normaliser: reference code).

    Args:
        aux_error: `e_hat - e`, where e_hat is the reconstruction of the residual by dead features, without `b_dec`.
        squares: `|e_hat - e|^2` of each token.
        residual: e, what the main reconstruction leaves, detached: AuxK moves dead features only.

    Returns:
        The loss; 0 where the residual is constant, since there is nothing to explain.
    """
    spread = (residual - residual.mean(0)).square().sum()
    error = _SumOfSquares.apply(aux_error, squares)
    # where() instead of a Python branch: a branch would wait for the device at every step.
    return (error / spread.where(spread > 0, 1.0)).where(spread > 0, 0.0 * error)
