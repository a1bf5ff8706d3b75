"""A control for shrinkage: data on which the bias of an L1 penalty, and the factor that best undoes it, are known."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelab.evaluation.synthetic.generator import PlantedFeatures
from saelab.evaluation.synthetic.planted import require
from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class OrthonormalFeatures(PlantedFeatures):
    """Independent features with orthonormal directions and no noise.

    Nothing interferes, so the best non-negative code under ``|x - f V|^2 + penalty sum f`` is the
    coefficient moved towards zero, ``f = max(h - penalty / 2, 0)`` (derived). With at most 0.5 = penalty / 2
    no feature is lost, the support is right and magnitudes are the only error.
    """

    n_features: int = 32
    """Planted directions, at most ``d_in``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.n_features <= self.d_in, f"at most {self.d_in} directions can be orthonormal")
        require(self.noise == 0, "the factor is known without noise only")

    def directions(self) -> Float[Tensor, "n_features d_in"]:
        """Return orthonormal directions."""
        rows = torch.randn(
            self.d_in, self.n_features, generator=self.draws("directions"), dtype=torch.float64
        )
        return torch.linalg.qr(rows).Q.T.float().contiguous()

    def penalised_code(
        self, x: Float[Tensor, "rows d_in"], penalty: float
    ) -> Float[Tensor, "rows n_features"]:
        """Return the code that minimises ``|x - f V|^2 + penalty sum f`` over non-negative f."""
        return (x @ self.directions().T - penalty / 2).clamp_min(0)

    def best_factor(self, penalty: float) -> float:
        """Return the factor gamma for which ``gamma (x_hat - mean)`` is closest to ``x - mean`` (derived).

        With t = penalty / 2 in [0, 0.5], coefficients h uniform in [0.5, 1.5] with probability p and
        f = h - t where on: ``gamma = Cov(h, f) / Var(f) = (1/12 + (1 - t) - p (1 - t)) / (1/12 + (1 - t)^2 (1 - p))``.

        Raises:
            UsageError: The penalty is not in [0, 1].
        """
        require(0 <= penalty <= 1, f"penalty is {penalty:g}; the factor is known from 0 to 1")
        p, rest = self.mean_active / self.n_features, 1 - penalty / 2
        return (1 / 12 + rest * (1 - p)) / (1 / 12 + rest**2 * (1 - p))


def shrinkage_factor(x: Float[Tensor, "rows d"], x_hat: Float[Tensor, "rows d"]) -> float:
    """Return ``sum <x - mu, x_hat - mu_hat> / sum |x_hat - mu_hat|^2``; above 1 where x_hat is shrunk.

    Sums in float64. NaN where x_hat is constant.
    """
    x, x_hat = x.double() - x.double().mean(0), x_hat.double() - x_hat.double().mean(0)
    return float((x * x_hat).sum() / x_hat.square().sum())
