"""Statistics of one hookpoint's activations, gathered in one pass in a fixed order.

Everything is computed in float64 from the stored (rounded) values, with numpy on one thread, so the
result depends neither on the number of threads nor on where the writing was interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saelab.errors import DamagedFileError
from saelab_kernels.shapes import Float, Tensor

# A chunk in float64 stays in the cache between the passes over it.
CHUNK_ROWS = 1024
# A norm's bin is the upper part of its float32 bits: exponent and 11 bits of mantissa.
_BIN_SHIFT = 12
_N_BINS = 1 << (31 - _BIN_SHIFT)


@dataclass(frozen=True, kw_only=True)
class HookStatistics:
    """What the training rows of a hookpoint look like."""

    mean: Float[Tensor, " d_in"]
    """Mean activation, float64."""
    mean_square_norm: float
    """Mean of the squared norm, E|x|^2."""
    variance: float
    """Total variance, E|x - mean|^2, summed over dimensions."""
    median_norm: float
    """Median norm, from a histogram with bins 0.05 % wide: off by at most half of that."""
    max_norm: float
    """Largest norm."""
    n_rows: int
    """Training rows that were counted."""

    @property
    def outlier_ratio(self) -> float | None:
        """Largest norm over median norm; None where the median is 0."""
        return self.max_norm / self.median_norm if self.median_norm > 0 else None

    def scalars(self) -> dict[str, Any]:
        """Return everything but the mean, ready for JSON."""
        return {
            "mean_square_norm": self.mean_square_norm,
            "variance": self.variance,
            "median_norm": self.median_norm,
            "max_norm": self.max_norm,
            "outlier_ratio": self.outlier_ratio,
            "n_rows": self.n_rows,
        }

    @classmethod
    def from_parts(cls, scalars: Any, mean: Float[Tensor, " d_in"]) -> HookStatistics:
        """Join what `scalars` returned with the mean.

        Raises:
            DamagedFileError: A value is missing or is not a number.
        """
        names = ("mean_square_norm", "variance", "median_norm", "max_norm", "n_rows")
        good = isinstance(scalars, dict) and all(
            isinstance(scalars.get(name), (int, float)) and not isinstance(scalars[name], bool)
            for name in names
        )
        if not good:
            raise DamagedFileError(f"the statistics of a hookpoint lack one of {', '.join(names)}")
        return cls(mean=mean, **{name: scalars[name] for name in names})


class StatisticsAccumulator:
    """Gathers `HookStatistics` from pieces of rows; the order of the pieces is part of the last bits.

    Means and variances are merged pairwise (Chan, Golub and LeVeque 1979, textbook formula): no sum
    of squares is ever subtracted from another.
    """

    def __init__(self, d_in: int) -> None:
        self._n = 0
        self._mean = np.zeros(d_in)
        self._squared_deviation = 0.0
        self._squared_norm = 0.0
        self._max_norm = 0.0
        self._bins = np.zeros(_N_BINS, dtype=np.int64)

    def add(self, x: Float[Tensor, "rows d_in"]) -> None:
        """Count more rows, of any floating dtype."""
        chunks = [x[start : start + CHUNK_ROWS] for start in range(0, len(x), CHUNK_ROWS)]
        norms = [self._add_chunk(chunk.double().numpy()) for chunk in chunks]
        if norms:
            bins = np.concatenate(norms).astype(np.float32).view(np.uint32) >> _BIN_SHIFT
            self._bins += np.bincount(bins, minlength=_N_BINS)

    def finish(self) -> HookStatistics:
        """Return the statistics; at least one row must have been added."""
        import torch

        middle = int(np.searchsorted(np.cumsum(self._bins), (self._n + 1) // 2))
        edges = np.array([middle << _BIN_SHIFT, (middle + 1) << _BIN_SHIFT], dtype=np.uint32).view(np.float32)
        median = 0.0 if middle == 0 else float(edges.astype(np.float64).mean())
        return HookStatistics(
            mean=torch.from_numpy(self._mean.copy()),
            mean_square_norm=self._squared_norm / self._n,
            variance=self._squared_deviation / self._n,
            median_norm=median,
            max_norm=self._max_norm,
            n_rows=self._n,
        )

    def _add_chunk(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Merge a chunk and return its norms."""
        n = len(x)
        mean = x.mean(axis=0)
        centred = x - mean
        squared_norms = np.einsum("nd,nd->n", x, x)
        delta = mean - self._mean
        total = self._n + n
        self._mean += delta * (n / total)
        between = float(np.sum(delta * delta)) * (self._n * n / total)
        self._squared_deviation += float(np.einsum("nd,nd->", centred, centred)) + between
        self._squared_norm += float(squared_norms.sum())
        self._n = total
        norms = np.sqrt(squared_norms)
        self._max_norm = max(self._max_norm, float(norms.max()))
        return norms
