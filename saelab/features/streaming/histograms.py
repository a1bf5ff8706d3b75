"""Histograms of equal bins from 0 to each feature's largest activation, which is known from the first pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saelab.features.building.numbers import equal_edges
from saelab.features.streaming.state import Arrays


class Histograms(Arrays):
    """One histogram for each feature.

    Args:
        maxima: Largest activation of each feature, 0 where it never fired.
        bins: Bins of each histogram.
    """

    names = ("counts",)

    def __init__(self, maxima: NDArray[np.float32], bins: int) -> None:
        self._edges = np.stack([equal_edges(float(maximum), bins) for maximum in maxima])
        self.counts = np.zeros((len(maxima), bins), dtype=np.int64)

    def add(self, features: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Count activations, and return the bin of each: [low, high), the last one closed."""
        n = self.counts.shape[1]
        share = values.astype(np.float64) / self._edges[features, n]
        bins = np.clip((share * n).astype(np.int64), 0, n - 1)
        while True:  # the edges are rounded, so that the guess may be a bin off
            low = (bins > 0) & (values < self._edges[features, bins])
            high = (bins < n - 1) & (values >= self._edges[features, bins + 1])
            if not (low.any() or high.any()):
                break
            bins += high.astype(np.int64) - low
        np.add.at(self.counts.reshape(-1), features * n + bins, 1)
        return bins
