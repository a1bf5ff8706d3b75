"""Codes pooled over units: sparse (feature, unit, value), a block of features at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saelab.features.codes import CodeShard
from saelab.features.find.spec import Pool
from saelab.features.find.units import Units

Shards = Callable[[], Iterable[CodeShard]]
"""Reads the codes of a corpus from the beginning."""


@dataclass(frozen=True)
class Pooled:
    """Values above 0, ordered by feature and within it by unit."""

    feature: NDArray[np.int64]
    """Feature of each entry ``[nnz]``."""
    unit: NDArray[np.int64]
    """Unit of each entry ``[nnz]``."""
    value: NDArray[np.float64]
    """Its value there ``[nnz]``."""


def pooled_blocks(shards: Shards, units: Units, d_sae: int, pool: Pool, pairs: int) -> Iterator[Pooled]:
    """Yield all features with their values on all units, so that about ``pairs`` codes are in memory at a time.

    The codes are read once to count them, and once for each block.
    """
    counts = np.zeros(d_sae, dtype=np.int64)
    for shard in shards():
        _, column, _ = _of_units(shard, units)
        counts += np.bincount(column, minlength=d_sae)
    first = 0
    ends = np.cumsum(counts)
    while first < d_sae:
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + pairs, side="right")))
        if ends[last - 1] > before:
            yield pool_features(shards, units, first, last, pool)
        first = last


def pool_features(shards: Shards, units: Units, first: int, last: int, pool: Pool) -> Pooled:
    """Return the features from ``first`` up to ``last`` on all units."""
    n = len(units.positive)
    keys, values = np.zeros(0, dtype=np.int64), np.zeros(0)
    for shard in shards():
        unit, column, value = _of_units(shard, units)
        wanted = (column >= first) & (column < last)
        key = (column[wanted] - first) * n + unit[wanted]
        found, merged = _merge(key, value[wanted], pool)
        keys, values = np.concatenate([keys, found]), np.concatenate([values, merged])
    keys, values = _merge(keys, values, pool)
    unit = keys % n
    return Pooled(keys // n + first, unit, values / units.size[unit] if pool == "mean" else values)


def _of_units(
    shard: CodeShard, units: Units
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return unit, feature and value of the codes of a shard that lie in a unit."""
    unit = units.of_token[shard.token_index.numpy()][shard.code.row_ids().numpy()]
    inside = unit >= 0
    values = shard.code.values.numpy()[inside].astype(np.float64)
    return unit[inside], shard.code.columns.numpy()[inside].astype(np.int64), values


def _merge(
    keys: NDArray[np.int64], values: NDArray[np.float64], pool: Pool
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if not len(keys):
        return keys, values
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    combine = np.maximum if pool == "max" else np.add
    return keys[starts], combine.reduceat(values, starts)
