"""How sparse a code is, and how well it gives the activations back: sums over a stream of tokens.

All sums are float64 and are added in the order of the tokens. The spread of the activations around
their mean is kept as (count, mean, scatter), merged piece by piece (Chan, Golub, LeVeque 1979), so
that one pass is enough and a large mean costs no digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from saelab.sae.feature_statistics import FeatureAccumulator, FeatureStatistics
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Float, Tensor

DENSE_FROM = 0.1
"""A feature is dense when it fired on more than this share of the tokens."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionMetrics:
    """Sparsity and reconstruction over the evaluated tokens; None where a value is not defined."""

    l0: float | None
    """Mean number of active features (value > 0) per token."""
    fvu: float | None
    """sum |x - x_hat|^2 / sum |x - mean x|^2, the mean being that of the same tokens."""
    explained_variance: float | None
    """1 - fvu."""
    mse: float | None
    """Mean of (x - x_hat)^2 over all elements, in squared units of the activations."""
    cosine: float | None
    """Mean over tokens of cos(x, x_hat): 0 where only x_hat is zero, left out where x is zero."""
    dead_fraction: float | None
    """Share of features that never fired on these tokens."""
    dense_fraction: float | None
    """Share of features that fired on more than a tenth of these tokens."""
    n_tokens: int
    """Tokens that were evaluated."""


class ReconstructionAccumulator:
    """Streams targets, reconstructions and codes; holds no token.

    A target that is several hookpoints side by side is one vector: joining raw units weights each hookpoint
    by its variance in ``fvu`` and by its squared length in ``cosine``; `fvu_of_parts` weights none.

    Args:
        d_out: Width of the target and of its reconstruction.
        d_sae: Number of features.
        parts: Widths of the hookpoints that the target is joined of, where there are several.
    """

    def __init__(self, d_out: int, d_sae: int, parts: Sequence[int] = ()) -> None:
        if parts and sum(parts) != d_out:
            raise ValueError(f"the parts {list(parts)} do not make up d_out {d_out}")
        self._moments = _no_moments(d_out)
        self._widths = list(parts) if len(parts) > 1 else []
        self._parts = [(_no_moments(width), 0.0) for width in self._widths]
        self._features = FeatureAccumulator(d_sae)
        self._squared_error = self._cosine_sum = 0.0
        self._n_cosines = self._n_active = 0

    def update(
        self, x: Float[Tensor, "rows d_out"], x_hat: Float[Tensor, "rows d_out"], code: SparseCode
    ) -> None:
        """Add some more tokens: what the SAE should give, what it gave, and through which code."""
        if not x.shape == x_hat.shape == (code.n_rows, self._moments.mean.shape[0]):
            raise ValueError(
                f"update: x {tuple(x.shape)}, x_hat {tuple(x_hat.shape)} and a code of {code.n_rows} rows "
                f"do not fit d_out {self._moments.mean.shape[0]}"
            )
        if x.shape[0] == 0:
            return
        target, output = _double(x), _double(x_hat)
        self._moments = self._moments.merge(_Moments.of(target))
        self._squared_error += (target - output).square().sum().item()
        if self._widths:
            self._parts = [
                (moments.merge(_Moments.of(of_target)), error + (of_target - of_output).square().sum().item())
                for (moments, error), of_target, of_output in zip(
                    self._parts, target.split(self._widths, 1), output.split(self._widths, 1), strict=True
                )
            ]
        self._add_cosines(target, output)
        self._features.add(code)
        self._n_active += int(code.l0().sum())

    def features(self) -> FeatureStatistics:
        """Return how often and how strongly each feature fired."""
        return self._features.result()

    def fvu_of_parts(self) -> list[float | None]:
        """Return the fvu of each hookpoint by itself, in order; empty where there is only one."""
        return [_ratio(error, moments.scatter) for moments, error in self._parts]

    def result(self) -> ReconstructionMetrics:
        """Return the metrics of all tokens so far."""
        n, d_out = self._moments.count, self._moments.mean.shape[0]
        features = self._features.result()
        fvu = _ratio(self._squared_error, self._moments.scatter)
        return ReconstructionMetrics(
            l0=_ratio(self._n_active, n),
            fvu=fvu,
            explained_variance=None if fvu is None else 1.0 - fvu,
            mse=_ratio(self._squared_error, n * d_out),
            cosine=_ratio(self._cosine_sum, self._n_cosines),
            dead_fraction=(features.count == 0).double().mean().item() if n else None,
            dense_fraction=(features.density > DENSE_FROM).double().mean().item() if n else None,
            n_tokens=n,
        )

    def _add_cosines(self, target: Float[Tensor, "rows d_out"], output: Float[Tensor, "rows d_out"]) -> None:
        lengths, products = target.norm(dim=1) * output.norm(dim=1), (target * output).sum(1)
        # No direction in common is the honest value for a token that the SAE answers with nothing.
        cosines = torch.where(lengths == 0, torch.zeros_like(lengths), products / lengths)
        self._cosine_sum += cosines.sum().item()
        self._n_cosines += int((target != 0).any(1).sum())


@dataclass(frozen=True)
class _Moments:
    """Count, mean [d] (float64) and scatter = sum over rows of |x - mean|^2."""

    count: int
    mean: Tensor
    scatter: float

    @classmethod
    def of(cls, x: Float[Tensor, "rows d"]) -> _Moments:
        # Summing before dividing is exact for equal float32 rows, so constant input has scatter 0 exactly.
        mean = x.sum(0) / x.shape[0]
        return cls(x.shape[0], mean.cpu(), (x - mean).square().sum().item())

    def merge(self, other: _Moments) -> _Moments:
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        between = shift.square().sum().item() * self.count * other.count / count
        return _Moments(
            count, self.mean + shift * (other.count / count), self.scatter + other.scatter + between
        )


def _no_moments(d: int) -> _Moments:
    return _Moments(0, torch.zeros(d, dtype=torch.float64), 0.0)


def _double(x: Tensor) -> Tensor:
    # Apple's GPUs have no float64.
    return (x.cpu() if x.device.type == "mps" else x).double()


def _ratio(numerator: float, denominator: float) -> float | None:
    if denominator == 0 or not math.isfinite(numerator) or not math.isfinite(denominator):
        return None
    return numerator / denominator
