"""One group of features, from all of their firings, to rows of the tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from saelab.features.building.by_feature import Firings
from saelab.features.building.corpus import Corpus
from saelab.features.building.examples import Chooser, Chosen
from saelab.features.building.numbers import bin_of, counts_of, equal_edges, log_histogram, moments, quantiles
from saelab.features.building.rows import (
    Description,
    ExampleRows,
    dead_lists,
    dead_numbers,
    example_batch,
    lists_row,
    numbers_row,
)
from saelab.features.building.token_statistics import TokenCounter
from saelab.features.spec import IndexConfig


@dataclass
class GroupTables:
    """What the corpus says of a group of features, column by column."""

    numbers: dict[str, list[Any]] = field(default_factory=dict)
    """Columns of ``features.parquet`` that come from the corpus."""
    lists: dict[str, list[Any]] = field(default_factory=dict)
    """Columns of ``feature_detail.parquet`` that come from the corpus."""
    examples: list[pa.RecordBatch] = field(default_factory=list)
    """Rows of ``examples.parquet``."""

    def add(self, found: Description, config: IndexConfig) -> None:
        """Append a feature that fired."""
        self._append(numbers_row(found), lists_row(found, config))

    def add_dead(self, feature: int) -> None:
        """Append a feature that never fired: it has a row in each table but the examples."""
        self._append(dead_numbers(feature), dead_lists(feature))

    def _append(self, numbers: dict[str, Any], lists: dict[str, Any]) -> None:
        for table, row in ((self.numbers, numbers), (self.lists, lists)):
            for name, value in row.items():
                table.setdefault(name, []).append(value)


class Describer:
    """Describes features by their firings.

    Args:
        corpus: Where they fire.
        config: What is kept.
    """

    def __init__(self, corpus: Corpus, config: IndexConfig) -> None:
        self._corpus, self._config = corpus, config
        self._chooser = Chooser(corpus, config)
        self._counter = TokenCounter(corpus, self._chooser.positions)

    def describe(self, group: Iterable[Firings]) -> GroupTables:
        """Return the tables of a group."""
        tables, config = GroupTables(), self._config
        for firings in group:
            if not len(firings.rows):
                tables.add_dead(firings.feature)
                continue
            ascending = np.sort(firings.values)
            maximum = float(ascending[-1])
            intervals = bin_of(firings.values, equal_edges(maximum, config.intervals))
            histogram = bin_of(firings.values, equal_edges(maximum, config.histogram_bins))
            found = Description(
                feature=firings.feature,
                n_fires=len(firings.rows),
                density=len(firings.rows) / self._corpus.n_kept,
                n_documents=len(np.unique(self._chooser.documents(firings.rows))),
                maximum=maximum,
                moments=moments(ascending),
                quantiles=quantiles(ascending),
                tokens=self._counter.count(firings.rows, firings.values),
                histogram=counts_of(histogram, config.histogram_bins),
                log_histogram=log_histogram(firings.values),
                intervals=counts_of(intervals, config.intervals),
            )
            tables.add(found, config)
            chosen = list(self._chooser.choose(firings, intervals))
            tables.examples.append(examples_of(self._corpus, self._chooser, firings, chosen))
        return tables


def examples_of(
    corpus: Corpus, chooser: Chooser, firings: Firings, chosen: Sequence[Chosen]
) -> pa.RecordBatch:
    """Return the rows of examples of one feature, with its activations around them."""
    sizes = [len(one.positions) for one in chosen]
    positions = np.concatenate([one.positions for one in chosen])
    offsets, activations = chooser.windows(firings, positions)
    rows = ExampleRows(
        features=np.full(len(positions), firings.feature),
        kinds=np.repeat([one.kind for one in chosen], sizes),
        bins=np.repeat([one.bin for one in chosen], sizes),
        ranks=np.concatenate([np.arange(size) for size in sizes]),
        positions=positions,
        values=np.concatenate([one.activations for one in chosen]),
        sizes=np.array([len(one) for one in offsets], dtype=np.int64),
        offsets=np.concatenate([np.empty(0, np.int16), *offsets]),
        activations=np.concatenate([np.empty(0, np.float32), *activations]),
    )
    return example_batch(corpus, rows)
