"""What the corpus says of one feature, as rows of the tables: numbers, lists, examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saelab.features.building.corpus import Corpus
from saelab.features.building.examples import window_hashes
from saelab.features.building.numbers import Moments, equal_edges
from saelab.features.building.token_statistics import POSITION_BINS, TokenStatistics
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


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the corpus says of a feature that fired."""

    feature: int
    n_fires: int
    density: float
    n_documents: int
    maximum: float
    moments: Moments
    quantiles: Sequence[float | None]
    tokens: TokenStatistics
    histogram: Sequence[int]
    log_histogram: Sequence[int]
    intervals: Sequence[int]


def numbers_row(found: Description) -> dict[str, Any]:
    """Return the columns of ``features.parquet`` that come from the corpus."""
    tokens = found.tokens
    p50, p90, p99 = found.quantiles
    top = tokens.tokens[0]
    flags = (
        DENSE * (found.density > DENSE_ABOVE)
        | POSITION * (tokens.first_position_share >= POSITION_SHARE)
        | ONE_TOKEN * (top.share >= ONE_TOKEN_SHARE)
    )
    previous, following = tokens.previous or (None, None), tokens.next or (None, None)
    return {
        "feature": found.feature,
        "n_fires": found.n_fires,
        "density": found.density,
        "n_documents": found.n_documents,
        "max_act": found.maximum,
        "mean_active": found.moments.mean,
        "std_active": found.moments.std,
        "skew": found.moments.skew,
        "kurtosis": found.moments.kurtosis,
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "top_token": top.token,
        "top_token_share": top.share,
        "previous_token": previous[0],
        "previous_token_share": previous[1],
        "next_token": following[0],
        "next_token_share": following[1],
        "first_position_share": tokens.first_position_share,
        "flags": flags,
    }


def lists_row(found: Description, config: IndexConfig) -> dict[str, Any]:
    """Return the columns of ``feature_detail.parquet`` that come from the corpus."""
    return {
        "feature": found.feature,
        "histogram_edges": equal_edges(found.maximum, config.histogram_bins),
        "histogram_counts": found.histogram,
        "log_histogram_counts": found.log_histogram,
        "interval_edges": equal_edges(found.maximum, config.intervals),
        "interval_counts": found.intervals,
        "tokens": [one.token for one in found.tokens.tokens],
        "token_shares": [one.share for one in found.tokens.tokens],
        "token_fires": [one.n_fires for one in found.tokens.tokens],
        "position_shares": list(found.tokens.positions),
    }


@dataclass(frozen=True, kw_only=True)
class ExampleRows:
    """Examples of any features, in the order of the table, column by column."""

    features: NDArray[Any]
    kinds: NDArray[Any]
    bins: NDArray[Any]
    ranks: NDArray[Any]
    positions: NDArray[np.int64]
    """Token positions of the peaks."""
    values: NDArray[np.float32]
    """Activations on the peaks."""
    sizes: NDArray[np.int64]
    """How many active tokens each window has."""
    offsets: NDArray[np.int16]
    """Of the active tokens from their peak, window by window."""
    activations: NDArray[np.float32]


def example_batch(corpus: Corpus, rows: ExampleRows) -> pa.RecordBatch:
    """Return rows of ``examples.parquet``."""
    ends = pa.array(np.append(0, np.cumsum(rows.sizes)).astype(np.int32), pa.int32())
    columns = {
        "feature": rows.features.astype(np.uint32),
        "kind": rows.kinds.astype(np.uint8),
        "bin": rows.bins.astype(np.uint8),
        "rank": rows.ranks.astype(np.uint8),
        "token_index": rows.positions.astype(np.uint64),
        "document": corpus.document_of(rows.positions).astype(np.uint32),
        "activation": rows.values,
        "window_hash": window_hashes(corpus, rows.positions),
        "offsets": pa.ListArray.from_arrays(ends, pa.array(rows.offsets, pa.int16())),
        "activations": pa.ListArray.from_arrays(ends, pa.array(rows.activations, pa.float32())),
    }
    return pa.record_batch(columns, schema=EXAMPLES_SCHEMA)


def dead_numbers(feature: int) -> dict[str, Any]:
    """Return the numbers of a feature that never fired."""
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


def dead_lists(feature: int) -> dict[str, Any]:
    """Return the lists of a feature that never fired."""
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
