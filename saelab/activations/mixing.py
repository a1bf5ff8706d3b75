"""How well a stream mixes documents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saelab.activations.stream import StoreStream
from saelab.errors import UsageError


def mixing_quality(stream: StoreStream, n_batches: int) -> float:
    """Measure how well batches are mixed: 1 is a full shuffle, 2 means twice as many pairs from one document.

    Args:
        stream: Consumed by `n_batches` batches.
        n_batches: Batches to look at.

    Returns:
        Share of the pairs of rows in a batch that come from one document, relative to that share
        among all pairs of the split's rows.

    Raises:
        UsageError: No document has two rows, so there is nothing to compare with.
    """
    starts = stream.store.documents["start"].to_numpy()
    of_split = stream.store.row_map.rows_of_documents(stream.split)
    expected = _pairs(of_split) / (stream.n_rows * (stream.n_rows - 1))
    if expected == 0:
        raise UsageError("mixing_quality: no document has two rows")
    same = 0
    for _ in range(n_batches):
        index = stream.next().token_index.numpy()
        documents = np.searchsorted(starts, index, side="right")
        same += _pairs(np.unique(documents, return_counts=True)[1])
    return same / (n_batches * stream.batch_size * (stream.batch_size - 1)) / expected


def _pairs(counts: NDArray[np.int64]) -> int:
    return int((counts * (counts - 1)).sum())
