"""One group of features to rows of the tables: numbers, lists, examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saelab.features.building.by_feature import Firings
from saelab.features.building.corpus import Corpus
from saelab.features.building.examples import Chooser, Chosen
from saelab.features.building.numbers import bin_of, counts_of, equal_edges, log_histogram, moments, quantiles
from saelab.features.building.token_statistics import POSITION_BINS, TokenCounter, TokenStatistics
from saelab.features.schema import (
    DEAD,
    DENSE,
    DENSE_ABOVE,
    EXAMPLES_SCHEMA,
    LOG_BINS,
    ONE_TOKEN,
    POSITION,
)
from saelab.features.spec import IndexConfig

ONE_TOKEN_SHARE = 0.9
POSITION_SHARE = 0.5


@dataclass
class GroupTables:
    """What the corpus says of a group of features, column by column."""

    numbers: dict[str, list[Any]] = field(default_factory=dict)
    """Columns of ``features.parquet`` that come from the corpus."""
    lists: dict[str, list[Any]] = field(default_factory=dict)
    """Columns of ``feature_detail.parquet`` that come from the corpus."""
    examples: list[pa.RecordBatch] = field(default_factory=list)
    """Rows of ``examples.parquet``."""

    def add(self, table: dict[str, list[Any]], row: dict[str, Any]) -> None:
        """Append a row to one of the tables."""
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
        """Return the tables of a group; a feature that never fired has a row in each but the examples."""
        tables = GroupTables()
        for firings in group:
            if not len(firings.rows):
                tables.add(tables.numbers, _dead_numbers(firings.feature))
                tables.add(tables.lists, _dead_lists(firings.feature))
                continue
            ascending = np.sort(firings.values)
            intervals = equal_edges(float(ascending[-1]), self._config.intervals)
            bins = bin_of(firings.values, intervals)
            tokens = self._counter.count(firings.rows, firings.values)
            tables.add(tables.numbers, self._numbers(firings, ascending, tokens))
            tables.add(tables.lists, self._lists(firings, ascending, intervals, bins, tokens))
            tables.examples.append(
                example_batch(self._chooser, firings, list(self._chooser.choose(firings, bins)))
            )
        return tables

    def _numbers(
        self, firings: Firings, ascending: NDArray[np.float32], tokens: TokenStatistics
    ) -> dict[str, Any]:
        found = moments(ascending)
        density = len(firings.rows) / self._corpus.n_kept
        p50, p90, p99 = quantiles(ascending)
        top = tokens.tokens[0]
        flags = (
            DENSE * (density > DENSE_ABOVE)
            | POSITION * (tokens.first_position_share >= POSITION_SHARE)
            | ONE_TOKEN * (top.share >= ONE_TOKEN_SHARE)
        )
        return {
            "feature": firings.feature,
            "n_fires": len(firings.rows),
            "density": density,
            "n_documents": len(np.unique(self._chooser.documents(firings.rows))),
            "max_act": float(ascending[-1]),
            "mean_active": found.mean,
            "std_active": found.std,
            "skew": found.skew,
            "kurtosis": found.kurtosis,
            "p50": p50,
            "p90": p90,
            "p99": p99,
            "top_token": top.token,
            "top_token_share": top.share,
            "previous_token": None if tokens.previous is None else tokens.previous[0],
            "previous_token_share": None if tokens.previous is None else tokens.previous[1],
            "next_token": None if tokens.next is None else tokens.next[0],
            "next_token_share": None if tokens.next is None else tokens.next[1],
            "first_position_share": tokens.first_position_share,
            "flags": flags,
        }

    def _lists(
        self,
        firings: Firings,
        ascending: NDArray[np.float32],
        intervals: NDArray[np.float32],
        bins: NDArray[np.int64],
        tokens: TokenStatistics,
    ) -> dict[str, Any]:
        edges = equal_edges(float(ascending[-1]), self._config.histogram_bins)
        return {
            "feature": firings.feature,
            "histogram_edges": edges,
            "histogram_counts": counts_of(bin_of(firings.values, edges), self._config.histogram_bins),
            "log_histogram_counts": log_histogram(firings.values),
            "interval_edges": intervals,
            "interval_counts": counts_of(bins, self._config.intervals),
            "tokens": [one.token for one in tokens.tokens],
            "token_shares": [one.share for one in tokens.tokens],
            "token_fires": [one.n_fires for one in tokens.tokens],
            "position_shares": list(tokens.positions),
        }


def example_batch(chooser: Chooser, firings: Firings, chosen: Sequence[Chosen]) -> pa.RecordBatch:
    """Return the rows of examples of one feature, with its activations around them."""
    sizes = [len(one.rows) for one in chosen]
    rows = np.concatenate([one.rows for one in chosen])
    offsets, activations = chooser.windows(firings, rows)
    columns = {
        "feature": np.full(len(rows), firings.feature, dtype=np.uint32),
        "kind": np.repeat(np.array([one.kind for one in chosen], dtype=np.uint8), sizes),
        "bin": np.repeat(np.array([one.bin for one in chosen], dtype=np.uint8), sizes),
        "rank": np.concatenate([np.arange(size, dtype=np.uint8) for size in sizes]),
        "token_index": chooser.positions[rows].astype(np.uint64),
        "document": chooser.documents(rows).astype(np.uint32),
        "activation": np.concatenate([one.activations for one in chosen]),
        "window_hash": chooser.window_hashes(rows),
        "offsets": _lists_of(offsets, pa.int16()),
        "activations": _lists_of(activations, pa.float32()),
    }
    return pa.record_batch(columns, schema=EXAMPLES_SCHEMA)


def _lists_of(parts: list[NDArray[Any]], kind: pa.DataType) -> pa.ListArray:
    """Return a column of lists."""
    ends = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int32)
    flat = np.concatenate(parts) if parts else np.empty(0)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat, kind))


def _dead_numbers(feature: int) -> dict[str, Any]:
    undefined = (
        "max_act",
        "mean_active",
        "std_active",
        "skew",
        "kurtosis",
        "p50",
        "p90",
        "p99",
        "top_token",
        "top_token_share",
        "previous_token",
        "previous_token_share",
        "next_token",
        "next_token_share",
        "first_position_share",
    )
    known = {"feature": feature, "n_fires": 0, "density": 0.0, "n_documents": 0, "flags": DEAD}
    return known | dict.fromkeys(undefined)


def _dead_lists(feature: int) -> dict[str, Any]:
    return {
        "feature": feature,
        "histogram_edges": [],
        "histogram_counts": [],
        "log_histogram_counts": [0] * LOG_BINS,
        "interval_edges": [],
        "interval_counts": [],
        "tokens": [],
        "token_shares": [],
        "token_fires": [],
        "position_shares": [0.0] * POSITION_BINS,
    }
