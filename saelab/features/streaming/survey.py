"""The first pass: sums, the strongest firings, and a sample of the firings of each feature."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from saelab.features.building.corpus import Corpus
from saelab.features.building.draw import draw_keys, lots_of
from saelab.features.building.examples import firsts, window_hashes
from saelab.features.schema import RANDOM
from saelab.features.spec import IndexConfig
from saelab.features.streaming.batches import Batch, starts_of
from saelab.features.streaming.passes import Pass
from saelab.features.streaming.smallest import Entries, Smallest
from saelab.features.streaming.state import State
from saelab.features.streaming.sums import Sums

MOST, LEAST, TOGETHER = 512, 32, 2**24
"""Sampled firings of a feature, at most and at least, and of all features together."""
CANDIDATES = 4
"""Strongest documents of a feature that are kept for each top example: some of them show the same text."""


def sample_size(config: IndexConfig, d_sae: int) -> int:
    """Return how many firings of a feature are sampled; never fewer than there are random examples."""
    return max(config.random, min(MOST, max(LEAST, TOGETHER // d_sae)))


class Survey(Pass):
    """What the first pass finds out.

    Args:
        corpus: What is read.
        config: What is kept.
        d_sae: Number of features.
    """

    def __init__(self, corpus: Corpus, config: IndexConfig, d_sae: int) -> None:
        self._corpus, self._config, self.d_sae = corpus, config, d_sae
        self._keys = draw_keys(config.seed, RANDOM, np.arange(d_sae))
        self.sums = Sums(corpus, d_sae)
        self._strongest = Smallest(d_sae, CANDIDATES * config.top, alike=corpus.document_of)
        self._sample = Smallest(d_sae, sample_size(config, d_sae))

    @property
    def states(self) -> dict[str, State]:
        return {"sums": self.sums, "strongest": self._strongest, "sample": self._sample}

    def add(self, batch: Batch) -> None:
        documents = self._corpus.document_of(batch.tokens)[batch.rows]
        self.sums.add(batch, documents)
        lots = lots_of(self._keys[batch.features], batch.positions)
        self._take(self._sample, batch, lots)
        self._take(self._strongest, batch, weakness(batch.values), documents)

    def _take(
        self,
        pool: Smallest,
        batch: Batch,
        keys: NDArray[np.uint64],
        documents: NDArray[np.int64] | None = None,
    ) -> None:
        which = pool.wanted(batch.features, keys)
        if documents is not None and len(
            which
        ):  # one of each document here already, which keeps the buffer small
            starts = starts_of(batch.features[which], documents[which])
            sizes = np.diff(np.append(starts, len(which)))
            best = keys[which] == np.repeat(np.minimum.reduceat(keys[which], starts), sizes)
            owner = np.repeat(np.arange(len(starts)), sizes)[best]
            which = which[best][starts_of(owner)]
        pool.add(
            Entries.bare(batch.features[which], keys[which], batch.positions[which], batch.values[which])
        )

    @cached_property
    def sample(self) -> Entries:
        """Sampled firings by feature, the smallest lot first."""
        return self._sample.result()

    @cached_property
    def top(self) -> Entries:
        """Top examples by feature, strongest first; keys are ranks."""
        return self._top[0]

    @cached_property
    def has_all_top(self) -> bool:
        """Whether no feature lacks a top example because too many candidates show the same text."""
        return self._top[1]

    @cached_property
    def _top(self) -> tuple[Entries, bool]:
        found, whole = self._strongest.result(), True
        bounds = np.searchsorted(found.groups, np.arange(self.d_sae + 1))
        shown, ranks = [], []
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            new = firsts(window_hashes(self._corpus, found.positions[first:last]))[: self._config.top]
            whole &= len(new) == self._config.top or last - first < CANDIDATES * self._config.top
            shown.append(new + first)
            ranks.append(np.arange(len(new), dtype=np.uint64))
        top = found.take(np.concatenate(shown))
        return Entries.bare(top.groups, np.concatenate(ranks), top.positions, top.values), whole


def weakness(values: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return keys that put larger positive values first: their bits are ordered as they are."""
    return np.uint64(2**32 - 1) - values.view(np.uint32).astype(np.uint64)
