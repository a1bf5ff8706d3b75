"""Codes pooled over units: sparse (feature, unit, value), a block of features at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saelab.features.codes import CodeShard
from saelab.features.find.spec import Pool
from saelab.features.find.units import Units
from saelab.features.find.watch import Shards, Watch


@dataclass(frozen=True)
class Pooled:
    """Values above 0, ordered by feature and within it by unit."""

    feature: NDArray[np.int64]
    """Feature of each entry ``[nnz]``."""
    unit: NDArray[np.int64]
    """Unit of each entry ``[nnz]``."""
    value: NDArray[np.float64]
    """Its value there ``[nnz]``."""


@dataclass(frozen=True, kw_only=True)
class PooledCodes:
    """Reads features on units block by block, so that about ``pairs`` codes are in memory at a time."""

    shards: Shards
    """Reads the codes from the beginning: once to count them, and once for each block."""
    units: Units
    """What values are pooled over."""
    d_sae: int
    """Number of features."""
    pool: Pool
    """How."""
    pairs: int
    """Codes in memory, about; a single feature is never cut."""
    watch: Watch
    """Progress and stop."""

    def counts(self) -> NDArray[np.int64]:
        """Return how many codes each feature has in units ``[d_sae]``."""
        found = np.zeros(self.d_sae, dtype=np.int64)
        everything = np.ones(self.d_sae, dtype=np.bool_)
        with self.watch.progress("counting codes", 1) as progress:
            for shard in self.watch.read(self.shards, progress):
                _, column, _ = self._entries(shard, everything)
                found += np.bincount(column, minlength=self.d_sae)
        return found

    def blocks(self, counts: NDArray[np.int64], what: str) -> Iterator[Pooled]:
        """Yield the features whose count is above 0, ascending."""
        features = np.flatnonzero(counts)
        ends = np.cumsum(counts[features])
        groups: list[NDArray[np.int64]] = []
        first = 0
        while first < len(features):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + self.pairs, side="right")))
            groups.append(features[first:last])
            first = last
        with self.watch.progress(what, len(groups)) as progress:
            for group in groups:
                wanted = np.zeros(self.d_sae, dtype=np.bool_)
                wanted[group] = True
                parts = [self._pooled(shard, wanted) for shard in self.watch.read(self.shards, progress)]
                yield self._joined(parts)

    def _pooled(
        self, shard: CodeShard, wanted: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        unit, column, value = self._entries(shard, wanted)
        return _merge(column * len(self.units.positive) + unit, value, self.pool)

    def _joined(self, parts: list[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> Pooled:
        keys, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        keys, values = _merge(keys, values, self.pool)
        feature, unit = np.divmod(keys, len(self.units.positive))
        return Pooled(feature, unit, values / self.units.size[unit] if self.pool == "mean" else values)

    def _entries(
        self, shard: CodeShard, wanted: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return unit, feature and value of the codes of wanted features that lie in a unit."""
        columns = shard.code.columns.numpy()
        asked = np.flatnonzero(wanted[columns])
        unit = self.units.of_token[shard.token_index.numpy()][shard.code.row_ids().numpy()[asked]]
        asked, unit = asked[unit >= 0], unit[unit >= 0]
        return unit, columns[asked].astype(np.int64), shard.code.values.numpy()[asked].astype(np.float64)


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
