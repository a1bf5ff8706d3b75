"""Where the tokens of strongest examples occur: the same evenly spread occurrences as the exact build looks through."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from saelab.features.building.corpus import Corpus
from saelab.features.building.examples import CANDIDATES
from saelab.features.streaming.batches import starts_of
from saelab.features.streaming.smallest import spread
from saelab.features.streaming.state import Arrays

PAIRS = 2**20
"""Pairs of a feature and a place that are made at once, about."""
_BLOCK = 2**22


class Occurrences(Arrays):
    """Pairs each feature with occurrences of its token, at most 4,096 of them over the whole corpus.

    Args:
        corpus: What is read.
        features: Features that have a token.
        tokens: The token of each.
    """

    names = ("seen",)

    def __init__(self, corpus: Corpus, features: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        self._corpus = corpus
        order = np.argsort(tokens, kind="stable")
        self._features, tokens = features[order], tokens[order]
        self._totals = _count(corpus)
        self.seen = np.zeros(len(self._totals), dtype=np.int64)
        self._starts = np.searchsorted(tokens, np.arange(len(self._totals) + 1))

    def pairs(self, positions: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield features and positions, of the next kept tokens of the corpus.

        Args:
            positions: Of these tokens, ascending, every one just once.
        """
        tokens = self._corpus.tokens[positions].astype(np.int64)
        chosen = positions[self._is_chosen(tokens)]
        tokens = self._corpus.tokens[chosen].astype(np.int64)
        first, sizes = self._starts[tokens], self._starts[tokens + 1] - self._starts[tokens]
        parts = np.cumsum(sizes) // PAIRS
        for part in np.split(np.arange(len(chosen)), starts_of(parts)[1:]) if len(chosen) else []:
            places = spread(first[part], sizes[part])
            yield self._features[places], np.repeat(chosen[part], sizes[part])

    def _is_chosen(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        order = np.argsort(tokens, kind="stable")
        starts = starts_of(tokens[order])
        counts = np.diff(np.append(starts, len(tokens)))
        number = np.empty(len(tokens), dtype=np.int64)
        number[order] = np.arange(len(tokens)) - np.repeat(starts, counts)
        number += self.seen[tokens]
        self.seen[tokens[order][starts]] += counts
        # Of n occurrences those numbered i * n // CANDIDATES are taken.
        n = self._totals[tokens]
        i = -(-number * CANDIDATES // n)
        return (n <= CANDIDATES) | ((i < CANDIDATES) & (i * n // CANDIDATES == number))


def _count(corpus: Corpus) -> NDArray[np.int64]:
    """Return how often each token is kept."""
    found = np.zeros(int(corpus.tokens.max(initial=0)) + 1, dtype=np.int64)
    for start in range(0, corpus.n_tokens, _BLOCK):
        part = slice(start, start + _BLOCK)
        kept = np.asarray(corpus.tokens[part])[np.asarray(corpus.keep[part])]
        found += np.bincount(kept, minlength=len(found))
    return found
