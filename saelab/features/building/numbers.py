"""What can be counted of one feature's activations: moments, quantiles, histograms. Sums are float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saelab.features.schema import LOG_BINS

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Moments:
    """Of the values as a population; None where they are not defined."""

    mean: float | None
    std: float | None
    skew: float | None
    """Third standardised moment; not defined where all values are equal."""
    kurtosis: float | None
    """Fourth standardised moment minus 3."""


def moments(values: NDArray[np.floating]) -> Moments:
    """Return the moments of any number of values."""
    if not len(values):
        return Moments(None, None, None, None)
    wide = values.astype(np.float64)
    mean = float(wide.mean())
    centred = wide - mean
    squares = centred * centred  # powers by ** are far slower
    return standardised(
        mean,
        float(squares.mean()),
        float((squares * centred).mean()),
        float((squares * squares).mean()),
    )


def standardised(mean: float, variance: float, third: float, fourth: float) -> Moments:
    """Return the moments from the mean and the central moments of a population."""
    # Below it, differences are the rounding of the mean and not of the data.
    if variance <= (1e-7 * mean) ** 2:
        return Moments(mean, 0.0 if variance <= 0 else math.sqrt(variance), None, None)
    return Moments(mean, math.sqrt(variance), third / variance**1.5, fourth / variance**2 - 3.0)


def quantiles(ascending: NDArray[np.floating]) -> list[float | None]:
    """Return the median, 90 % and 99 % quantiles of sorted values, linear between neighbours."""
    if not len(ascending):
        return [None] * len(QUANTILES)
    found = []
    for share in QUANTILES:
        place = share * (len(ascending) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ascending) - 1)
        a, b = float(ascending[low]), float(ascending[high])
        found.append(a + (b - a) * (place - low))
    return found


def equal_edges(maximum: float, bins: int) -> NDArray[np.float32]:
    """Return the edges of ``bins`` equal bins from 0 to a maximum, which is the last one exactly."""
    edges = np.linspace(0.0, maximum, bins + 1).astype(np.float32)
    edges[-1] = np.float32(maximum)
    return edges


def bin_of(values: NDArray[np.float32], edges: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the bin of each value: [low, high), the last one closed."""
    return np.searchsorted(edges[1:-1], values, side="right")


def counts_of(bins: NDArray[np.int64], n: int) -> list[int]:
    """Return how many values fell into each of ``n`` bins."""
    return np.bincount(bins, minlength=n).tolist()


def log_bin_of(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the half octave of each value: bin i holds [2^((i - 32) / 2), 2^((i - 31) / 2)), ends clipped."""
    half_octaves = np.floor(2.0 * np.log2(values.astype(np.float64))).astype(np.int64)
    return np.clip(half_octaves + LOG_BINS // 2, 0, LOG_BINS - 1)


def log_histogram(values: NDArray[np.float32]) -> list[int]:
    """Return how many values fell into each half octave; see `log_bin_of`."""
    return counts_of(log_bin_of(values), LOG_BINS)
