"""What is added up of each feature in the first pass. Sums are float64, in the order of the tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saelab.features.building.corpus import Corpus
from saelab.features.building.numbers import Moments, log_bin_of, standardised
from saelab.features.building.token_statistics import POSITION_BINS
from saelab.features.schema import LOG_BINS
from saelab.features.streaming.batches import Batch, starts_of
from saelab.features.streaming.state import Arrays


class Sums(Arrays):
    """Counts, central moments, maxima, histograms that need no maximum.

    Central moments are merged batch by batch (Chan, Golub, LeVeque 1979 for the second; Pébay 2008 for the third and
    the fourth), so that a mean that is large beside the spread costs no digits.

    Args:
        corpus: Where features fire.
        d_sae: Number of features.
    """

    names = (
        "counts",
        "maxima",
        "mass",
        "first_mass",
        "mean",
        "m2",
        "m3",
        "m4",
        "n_documents",
        "last_document",
        "log_histogram",
        "places",
    )

    def __init__(self, corpus: Corpus, d_sae: int) -> None:
        self._corpus = corpus
        self._context = int(np.diff(corpus.row_starts).max())
        self.counts = np.zeros(d_sae, dtype=np.int64)
        self.maxima = np.zeros(d_sae, dtype=np.float32)
        self.mass, self.first_mass, self.mean, self.m2, self.m3, self.m4 = np.zeros((6, d_sae))
        self.n_documents = np.zeros(d_sae, dtype=np.int64)
        self.last_document = np.full(d_sae, -1, dtype=np.int64)
        self.log_histogram = np.zeros((d_sae, LOG_BINS), dtype=np.int64)
        self.places = np.zeros((d_sae, POSITION_BINS), dtype=np.int64)

    def add(self, batch: Batch, documents: NDArray[np.int64]) -> None:
        """Add some rows of tokens.

        Args:
            batch: The rows.
            documents: The document of each pair.
        """
        if not len(batch.values):
            return
        starts = starts_of(batch.features)
        features = batch.features[starts]
        counts = np.diff(np.append(starts, len(batch.features)))
        wide = batch.values.astype(np.float64)
        mass = np.add.reduceat(wide, starts)
        self._merge_moments(features, counts, starts, wide, mass)
        self.mass[features] += mass
        self.maxima[features] = np.maximum(self.maxima[features], np.maximum.reduceat(batch.values, starts))
        self._count_places(batch, wide)
        np.add.at(self.log_histogram.reshape(-1), batch.features * LOG_BINS + log_bin_of(batch.values), 1)
        new = starts_of(batch.features, documents)
        np.add.at(self.n_documents, batch.features[new], 1)
        # Documents come in order: only the first one here can be the last one of before.
        self.n_documents[features] -= documents[starts] == self.last_document[features]
        self.last_document[features] = documents[starts + counts - 1]

    def moments(self, feature: int) -> Moments:
        """Return the moments of a feature that fired."""
        n = int(self.counts[feature])
        m2, m3, m4 = (float(one[feature]) / n for one in (self.m2, self.m3, self.m4))
        return standardised(float(self.mean[feature]), m2, m3, m4)

    def _count_places(self, batch: Batch, wide: NDArray[np.float64]) -> None:
        owner = self._corpus.row_of(batch.tokens)
        bins = (batch.tokens - self._corpus.row_starts[owner]) * POSITION_BINS // self._context
        np.add.at(self.places.reshape(-1), batch.features * POSITION_BINS + bins[batch.rows], 1)
        is_first = np.arange(len(owner)) + batch.first_row == self._corpus.first_rows(owner)
        first = is_first[batch.rows]
        np.add.at(self.first_mass, batch.features[first], wide[first])

    def _merge_moments(
        self,
        features: NDArray[np.int64],
        counts: NDArray[np.int64],
        starts: NDArray[np.int64],
        wide: NDArray[np.float64],
        mass: NDArray[np.float64],
    ) -> None:
        mean = mass / counts
        centred = wide - np.repeat(mean, counts)
        squares = centred * centred
        b2, b3, b4 = (np.add.reduceat(one, starts) for one in (squares, squares * centred, squares * squares))
        na, nb = self.counts[features].astype(np.float64), counts.astype(np.float64)
        a2, a3, a4 = self.m2[features], self.m3[features], self.m4[features]
        n, shift = na + nb, mean - self.mean[features]
        step = shift / n
        self.counts[features] += counts
        self.mean[features] += step * nb
        self.m2[features] = a2 + b2 + shift * step * na * nb
        self.m3[features] = (
            a3 + b3 + shift * step * step * na * nb * (na - nb) + 3 * step * (na * b2 - nb * a2)
        )
        self.m4[features] = (
            a4
            + b4
            + shift * step**3 * na * nb * (na * na - na * nb + nb * nb)
            + 6 * step * step * (na * na * b2 + nb * nb * a2)
            + 4 * step * (na * b3 - nb * a3)
        )
