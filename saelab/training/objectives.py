"""Terms of the training objective, each a function of small leaves."""

from __future__ import annotations

from saelab_kernels.shapes import Float, Tensor


def normalised_mse(
    target: Float[Tensor, "tokens d_out"], x_hat: Float[Tensor, "tokens d_out"], variance: float
) -> Float[Tensor, ""]:
    """Return `mean_b |x_b - x_hat_b|^2 / Var(x)` with a fixed total variance (paper: Gao et al. 2024, 2406.04093)."""
    return (target - x_hat).square().sum() / (len(target) * variance)


def aux_k(residual: Float[Tensor, "tokens d_out"], e_hat: Float[Tensor, "tokens d_out"]) -> Float[Tensor, ""]:
    """Return AuxK, `mean|e - e_hat|^2 / mean|e - mean e|^2` (paper: Gao et al. 2024; normaliser: reference code).

    Args:
        residual: What the main reconstruction leaves, detached: AuxK moves dead features only.
        e_hat: Reconstruction of the residual by dead features, without `b_dec`.

    Returns:
        The loss; 0 where the residual is constant, since there is nothing to explain.
    """
    spread = (residual - residual.mean(0)).square().sum()
    error = (residual - e_hat).square().sum()
    # where() instead of a Python branch: a branch would wait for the device at every step.
    return (error / spread.where(spread > 0, 1.0)).where(spread > 0, 0.0 * error)
