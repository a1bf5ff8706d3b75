"""Which places of the corpus are shown for a feature, and its activations around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saelab.features.building.by_feature import Firings
from saelab.features.building.corpus import Corpus
from saelab.features.building.draw import lots, mixed, smallest
from saelab.features.schema import INTERVAL, NON_ACTIVE, RANDOM, TOP
from saelab.features.spec import IndexConfig

HASH_TOKENS = 8
"""Tokens on either side whose equality makes two examples duplicates."""
FIRST_LOOK = 256
"""Strongest firings that are looked at first for the top examples."""
CANDIDATES = 4096
"""Occurrences of a token that are looked through for places where a feature is not active."""


@dataclass(frozen=True)
class Chosen:
    """Places of one kind, of one feature."""

    kind: int
    bin: int
    positions: NDArray[np.int64]
    """Token positions of the peaks, in order of their rank."""
    activations: NDArray[np.float32]
    """On the peaks."""


class Chooser:
    """Chooses examples; a function of the corpus, the firings and the seed alone.

    Args:
        corpus: Where the features are active.
        config: How many of each kind.
    """

    def __init__(self, corpus: Corpus, config: IndexConfig) -> None:
        self._corpus, self._config = corpus, config
        self.positions: NDArray[np.int64] = np.flatnonzero(corpus.keep)
        """Position of the token of each activation row."""
        tokens = corpus.tokens[self.positions]
        self._by_token = np.argsort(tokens, kind="stable")
        self._token_starts = np.searchsorted(
            tokens[self._by_token], np.arange(int(tokens.max(initial=0)) + 2)
        )
        self._documents = corpus.document_of(self.positions)

    def choose(self, firings: Firings, bins: NDArray[np.int64]) -> Iterator[Chosen]:
        """Yield what is shown of a feature that fired, kind by kind.

        Args:
            firings: Of the feature.
            bins: The interval of each firing.
        """
        top = self.top(firings)
        yield self._of(firings, TOP, 0, top)
        draws = lots(self._config.seed, INTERVAL, firings.feature, self.positions[firings.rows])
        for number in range(self._config.intervals):
            inside = np.flatnonzero(bins == number)
            yield self._of(
                firings, INTERVAL, number, inside[smallest(draws[inside], self._config.per_interval)]
            )
        draws = lots(self._config.seed, RANDOM, firings.feature, self.positions[firings.rows])
        yield self._of(firings, RANDOM, 0, smallest(draws, self._config.random))
        yield self.non_active(firings, int(firings.rows[top[0]]))

    def top(self, firings: Firings) -> NDArray[np.int64]:
        """Return the strongest firings, ties by position: one of each document, no two with the same surroundings."""
        n = min(FIRST_LOOK, len(firings.values))
        while True:
            order = _strongest(firings.values, n)
            found = self._one_each(firings.rows[order])
            if len(found) == self._config.top or n == len(firings.values):
                return order[found]
            n = min(4 * n, len(firings.values))

    def non_active(self, firings: Firings, like: int) -> Chosen:
        """Return places with the token of the activation row ``like`` on which the feature is not active."""
        token = int(self._corpus.tokens[self.positions[like]])
        first, last = self._token_starts[token], self._token_starts[token + 1]
        rows = self._by_token[first:last]
        if len(rows) > CANDIDATES:  # evenly spread, so that a frequent token costs no more than a rare one
            rows = rows[np.arange(CANDIDATES) * len(rows) // CANDIDATES]
        place = np.minimum(np.searchsorted(firings.rows, rows), len(firings.rows) - 1)
        rows = rows[firings.rows[place] != rows]
        draws = lots(self._config.seed, NON_ACTIVE, firings.feature, self.positions[rows])
        rows = rows[smallest(draws, self._config.non_active)]
        return Chosen(NON_ACTIVE, 0, self.positions[rows], np.zeros(len(rows), dtype=np.float32))

    def documents(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the document of each activation row."""
        return self._documents[rows]

    def windows(
        self, firings: Firings, peaks: NDArray[np.int64]
    ) -> tuple[list[NDArray[np.int16]], list[NDArray[np.float32]]]:
        """Return offsets and activations of a feature around peaks, within the window, the row and the document."""
        active = self.positions[firings.rows]
        low, high = window_of(self._corpus, peaks, self._config.window)
        first, last = np.searchsorted(active, low), np.searchsorted(active, high)
        offsets = [
            (active[a:b] - peak).astype(np.int16)
            for a, b, peak in zip(first.tolist(), last.tolist(), peaks.tolist(), strict=True)
        ]
        return offsets, [firings.values[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True)]

    def _of(self, firings: Firings, kind: int, number: int, chosen: NDArray[np.int64]) -> Chosen:
        return Chosen(kind, number, self.positions[firings.rows[chosen]], firings.values[chosen])

    def _one_each(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which rows are shown, in their order: new documents, new surroundings, as many as are wanted."""
        new = firsts(self._documents[rows])
        return new[firsts(window_hashes(self._corpus, self.positions[rows[new]]))][: self._config.top]


def firsts(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return where each distinct value stands first, in order."""
    _, found = np.unique(values, return_index=True)
    return np.sort(found)


def window_of(
    corpus: Corpus, peaks: NDArray[np.int64], window: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first position around each peak, and the one behind the last, within its row and document."""
    start, end = corpus.span_of(peaks)
    return np.maximum(peaks - window, start), np.minimum(peaks + window + 1, end)


def window_hashes(corpus: Corpus, peaks: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a hash of the tokens around each peak: of 8 on either side, within row and document."""
    around = peaks[:, None] + np.arange(-HASH_TOKENS, HASH_TOKENS + 1)
    start, end = corpus.span_of(peaks)
    inside = (around >= start[:, None]) & (around < end[:, None])
    tokens = np.where(inside, corpus.tokens[np.where(inside, around, 0)] + 1, 0).astype(np.uint64)
    found = np.zeros(len(peaks), dtype=np.uint64)
    for column in tokens.T:
        with np.errstate(over="ignore"):
            found = mixed(found * np.uint64(31) + column)
    return found


def _strongest(values: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Return where the ``n`` largest values stand, the largest first, equal ones in order."""
    if n < len(values):
        least = np.partition(values, len(values) - n)[len(values) - n]
        candidates = np.flatnonzero(values >= least)
    else:
        candidates = np.arange(len(values))
    return candidates[np.argsort(-values[candidates], kind="stable")][:n]
