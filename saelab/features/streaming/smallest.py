"""The entries with the smallest keys of each group, from a stream that is longer than memory.

What is kept of a group is its ``size`` smallest; new entries wait in a buffer, those above the largest kept key of a
full group are never taken in. When the buffer is full, everything is sorted, cut, and the largest kept keys sink.
The result does not depend on when that happens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saelab.features.streaming.batches import starts_of
from saelab.features.streaming.state import State

BUFFER = 2**26
"""Bytes of entries that wait before everything is sorted, or"""
SHARE = 0.5
"""this share of what is kept, where that is more."""
_BYTES, _BYTES_AROUND = 28, 6
"""Of an entry, and of each activation of its window."""
_ALL = np.iinfo(np.uint64).max


@dataclass(frozen=True)
class Entries:
    """Firings of features with what they are ordered by, and perhaps the activations around them."""

    groups: NDArray[np.int32]
    keys: NDArray[np.uint64]
    positions: NDArray[np.int64]
    """Token positions."""
    values: NDArray[np.float32]
    """Activations."""
    sizes: NDArray[np.int32]
    """How many activations of its window each entry has."""
    offsets: NDArray[np.int16]
    """Where they are, from the entry's position, entry by entry."""
    activations: NDArray[np.float32]
    """How strong they are."""

    @classmethod
    def none(cls) -> Entries:
        """Return no entries."""
        keys, positions, values = np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.float32)
        return cls.bare(positions, keys, positions, values)

    @classmethod
    def bare(
        cls,
        groups: NDArray[Any],
        keys: NDArray[np.uint64],
        positions: NDArray[np.int64],
        values: NDArray[np.float32],
    ) -> Entries:
        """Return entries without windows."""
        sizes, offsets = np.zeros(len(keys), dtype=np.int32), np.empty(0, dtype=np.int16)
        return cls(groups.astype(np.int32), keys, positions, values, sizes, offsets, np.empty(0, np.float32))

    @classmethod
    def cat(cls, parts: list[Entries]) -> Entries:
        """Return all entries of some parts."""
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_bytes(self) -> int:
        """Size in memory."""
        return sum(getattr(self, one.name).nbytes for one in fields(self))

    def take(self, which: NDArray[np.int64]) -> Entries:
        """Return some entries, in this order."""
        sizes = self.sizes[which].astype(np.int64)
        first = np.cumsum(self.sizes, dtype=np.int64)[which] - sizes
        inside = spread(first, sizes)
        return Entries(
            self.groups[which],
            self.keys[which],
            self.positions[which],
            self.values[which],
            self.sizes[which],
            self.offsets[inside],
            self.activations[inside],
        )

    def of(self, first: int, last: int) -> Entries:
        """Return the entries of the groups from ``first`` to before ``last``, of entries sorted by group."""
        start, stop = np.searchsorted(self.groups, [first, last])
        return self.take(np.arange(start, stop))


def spread(first: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of runs that begin at ``first`` and have some sizes, one run after the other."""
    return np.repeat(first - np.cumsum(sizes) + sizes, sizes) + np.arange(int(sizes.sum()))


class Smallest(State):
    """Keeps the smallest of each group; of equal keys the one that came first.

    Args:
        n_groups: Number of groups.
        size: Entries that are kept of each.
        around: Positions of an entry's window at most; 0 without windows.
        alike: Of entries of a group for which this function of their positions is equal only the smallest is kept.
    """

    def __init__(
        self,
        n_groups: int,
        size: int,
        around: int = 0,
        alike: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
    ) -> None:
        self.n_groups, self.size, self._around, self._alike = n_groups, size, around, alike
        self._limits = np.full(n_groups, _ALL if size else 0, dtype=np.uint64)
        self._kept, self._waiting, self._waiting_bytes = Entries.none(), list[Entries](), 0

    def wanted(self, groups: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return which entries may still be among the smallest."""
        return np.flatnonzero(keys <= self._limits[groups])

    def add(self, entries: Entries) -> None:
        """Take in some more."""
        self._waiting.append(entries)
        self._waiting_bytes += entries.n_bytes
        if self._waiting_bytes > self._room(self._kept.n_bytes):
            self._sort()

    def result(self) -> Entries:
        """Return the smallest entries, sorted by group and key."""
        if self._waiting:
            self._sort()
        return self._kept

    def tensors(self) -> dict[str, NDArray[Any]]:
        kept = self.result()
        found = {one.name: getattr(kept, one.name) for one in fields(kept)}
        # Tensor files have neither uint64 nor int16.
        return found | {"keys": kept.keys.view(np.int64), "offsets": kept.offsets.astype(np.int32)}

    def restore(self, tensors: dict[str, NDArray[Any]]) -> None:
        keys, offsets = tensors["keys"].view(np.uint64), tensors["offsets"].astype(np.int16)
        self._kept = Entries(**(tensors | {"keys": keys, "offsets": offsets}))
        self._lower_limits()

    @property
    def n_bytes(self) -> int:
        return self._limits.nbytes + self._kept.n_bytes + self._waiting_bytes

    @property
    def bound(self) -> int:
        kept = self.n_groups * self.size * (_BYTES + _BYTES_AROUND * self._around)
        return self._limits.nbytes + kept + self._room(kept)

    @staticmethod
    def _room(kept: int) -> int:
        return max(BUFFER, int(SHARE * kept))

    def _sort(self) -> None:
        everything = Entries.cat([self._kept, *self._waiting])
        self._waiting, self._waiting_bytes = [], 0
        order = np.lexsort((everything.keys, everything.groups))
        if self._alike is not None:
            order = order[self._first_alike(everything, order)]
        groups = everything.groups[order]
        starts = starts_of(groups)
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
        self._kept = everything.take(order[rank < self.size])
        self._lower_limits()

    def _first_alike(self, entries: Entries, order: NDArray[np.int64]) -> NDArray[np.int64]:
        assert self._alike is not None
        groups, alike = entries.groups[order], self._alike(entries.positions[order])
        together = np.lexsort((alike, groups))
        return np.sort(together[starts_of(groups[together], alike[together])])

    def _lower_limits(self) -> None:
        groups = self._kept.groups
        ends = np.append(starts_of(groups)[1:], len(groups))[: len(groups)] - 1
        full = ends[np.bincount(groups, minlength=self.n_groups)[groups[ends]] >= self.size]
        self._limits[groups[full]] = self._kept.keys[full]


def with_windows(
    entries: Entries, sizes: NDArray[np.int64], offsets: NDArray[np.int64], activations: NDArray[np.float32]
) -> Entries:
    """Return bare entries with the activations around them."""
    return replace(
        entries, sizes=sizes.astype(np.int32), offsets=offsets.astype(np.int16), activations=activations
    )
