"""The second pass, when the maxima are known: histograms, examples of every kind, codes of sampled tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from saelab.features.building.corpus import Corpus
from saelab.features.building.draw import draw_keys, lots_of
from saelab.features.building.examples import window_of
from saelab.features.codes import shard_name
from saelab.features.schema import INTERVAL, NON_ACTIVE
from saelab.features.spec import IndexConfig
from saelab.features.streaming.batches import Batch, starts_of
from saelab.features.streaming.histograms import Histograms
from saelab.features.streaming.occurrences import Occurrences
from saelab.features.streaming.passes import Pass
from saelab.features.streaming.smallest import Entries, Smallest, spread, with_windows
from saelab.features.streaming.state import State
from saelab.features.streaming.survey import Survey
from saelab.storage.tensors import write_tensors


class Collection(Pass):
    """What the second pass collects.

    Args:
        corpus: What is read.
        config: What is kept.
        survey: The first pass.
        sampled_codes: Folder for the codes of sampled tokens; None where co-activation is not asked for.
    """

    def __init__(
        self, corpus: Corpus, config: IndexConfig, survey: Survey, sampled_codes: Path | None
    ) -> None:
        self._corpus, self._config, self._folder = corpus, config, sampled_codes
        d_sae, top = survey.d_sae, survey.top
        self.histograms = Histograms(survey.sums.maxima, config.histogram_bins)
        self.intervals = Histograms(survey.sums.maxima, config.intervals)
        around = 2 * config.window + 1
        self.known = Smallest(d_sae, config.top + config.random, around)
        self.of_intervals = Smallest(d_sae * config.intervals, config.per_interval, around)
        self.silent = Smallest(d_sae, config.non_active, around)
        self._interval_keys, self._silent_keys = (
            draw_keys(config.seed, purpose, np.arange(d_sae)) for purpose in (INTERVAL, NON_ACTIVE)
        )
        alive = starts_of(top.groups)
        tokens = corpus.tokens[top.positions[alive]].astype(np.int64)
        self._occurrences = Occurrences(corpus, top.groups[alive].astype(np.int64), tokens)
        self._places = self._by_position(survey)
        sample = survey.sample
        looked_at = sample.positions[ranks(sample) < config.coactivation_samples]
        self._sampled = np.unique(looked_at if sampled_codes else np.empty(0, dtype=np.int64))
        self._codes: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]] = []

    @property
    def states(self) -> dict[str, State]:
        return {
            "histograms": self.histograms,
            "intervals": self.intervals,
            "known": self.known,
            "of_intervals": self.of_intervals,
            "silent": self.silent,
            "occurrences": self._occurrences,
        }

    def add(self, batch: Batch) -> None:
        windows = _Windows(self._corpus, self._config.window, batch)
        if len(batch.tokens):
            first, last = np.searchsorted(self._places.positions, [batch.tokens[0], batch.tokens[-1] + 1])
            here = self._places.take(np.arange(first, last))
            self.known.add(windows.around(here, here.groups))
        self.histograms.add(batch.features, batch.values)
        self._add_intervals(batch, windows)
        self._add_silent(batch, windows)
        if self._folder is not None:
            self._keep_codes(batch)

    def end_stretch(self, number: int) -> None:
        """Write the codes of the sampled tokens of a stretch."""
        if self._folder is None:
            return
        empty = np.empty(0, dtype=np.int64)
        parts = [(empty, empty, empty.astype(np.int32)), *self._codes]
        tokens, sizes, columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        arrays = {"token_index": tokens, "row_offsets": np.append(0, np.cumsum(sizes)), "columns": columns}
        path = self._folder / shard_name(number)
        write_tensors(path, {name: torch.from_numpy(array) for name, array in arrays.items()})
        self._codes = []

    def _by_position(self, survey: Survey) -> Entries:
        """Return the examples that are known already, with their ranks: top ones first, then random ones."""
        sample = survey.sample
        drawn = sample.take(np.flatnonzero(ranks(sample) < self._config.random))
        numbers = (ranks(drawn) + self._config.top).astype(np.uint64)
        random = Entries.bare(drawn.groups, numbers, drawn.positions, drawn.values)
        known = Entries.cat([survey.top, random])
        return known.take(np.argsort(known.positions, kind="stable"))

    def _add_intervals(self, batch: Batch, windows: _Windows) -> None:
        bins = self.intervals.add(batch.features, batch.values)
        groups = batch.features * self._config.intervals + bins
        lots = lots_of(self._interval_keys[batch.features], batch.positions)
        which = self.of_intervals.wanted(groups, lots)
        entries = Entries.bare(groups[which], lots[which], batch.positions[which], batch.values[which])
        self.of_intervals.add(windows.around(entries, batch.features[which]))

    def _add_silent(self, batch: Batch, windows: _Windows) -> None:
        for features, positions in self._occurrences.pairs(batch.tokens):
            lots = lots_of(self._silent_keys[features], positions)
            which = self.silent.wanted(features, lots)
            which = which[~windows.active(features[which], positions[which])]
            zeros = np.zeros(len(which), dtype=np.float32)
            entries = Entries.bare(features[which], lots[which], positions[which], zeros)
            self.silent.add(windows.around(entries, features[which]))

    def _keep_codes(self, batch: Batch) -> None:
        rows = np.flatnonzero(np.isin(batch.tokens, self._within(batch), assume_unique=True))
        assert batch.code.offsets is not None
        offsets = batch.code.offsets.numpy()
        sizes = offsets[rows + 1] - offsets[rows]
        columns = batch.code.columns.numpy()[spread(offsets[rows], sizes)].astype(np.int32)
        self._codes.append((batch.tokens[rows], sizes, columns))

    def _within(self, batch: Batch) -> NDArray[np.int64]:
        if not len(batch.tokens):
            return self._sampled[:0]
        first, last = np.searchsorted(self._sampled, [batch.tokens[0], batch.tokens[-1] + 1])
        return self._sampled[first:last]


class _Windows:
    """Finds activations of features around places of a batch."""

    def __init__(self, corpus: Corpus, window: int, batch: Batch) -> None:
        self._corpus, self._window, self._batch = corpus, window, batch
        self._pairs = self._key(batch.features, batch.positions)

    def active(self, features: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether features are active on positions."""
        wanted = self._key(features, positions)
        found = np.searchsorted(self._pairs, wanted)
        return np.append(self._pairs, -1)[found] == wanted

    def around(self, entries: Entries, features: NDArray[np.int64] | NDArray[np.int32]) -> Entries:
        """Return bare entries with the activations of their features around them."""
        low, high = window_of(self._corpus, entries.positions, self._window)
        first = np.searchsorted(self._pairs, self._key(features, low))
        sizes = np.searchsorted(self._pairs, self._key(features, high)) - first
        inside = spread(first, sizes)
        offsets = self._batch.positions[inside] - np.repeat(entries.positions, sizes)
        return with_windows(entries, sizes, offsets, self._batch.values[inside])

    def _key(self, features: NDArray[np.integer], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        # A window may end behind the last token.
        return features.astype(np.int64) * (self._corpus.n_tokens + 1) + positions


def ranks(entries: Entries) -> NDArray[np.int64]:
    """Return the rank of each entry within its group, of entries sorted by group and key."""
    starts = starts_of(entries.groups)
    return np.arange(len(entries)) - np.repeat(starts, np.diff(np.append(starts, len(entries))))
