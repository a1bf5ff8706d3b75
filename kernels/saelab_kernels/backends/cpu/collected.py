"""Rules that keep what lies above a limit, given (`Threshold`) or found on the way (`PerBatch`).

Blocks of rows are searched side by side. For a quota of Q pairs of the batch, any Q pairs bound the limit from below:
a thread that holds more than 2 Q keeps the largest Q of them, ties included, and raises the limit of all
threads. So the limit never passes a pair that the batch keeps, and which pairs are kept does not depend on who
was faster; how many were looked at does.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch

from saelab_kernels.backends.cpu.compiled import loop
from saelab_kernels.backends.cpu.lanes import LANES, above_mask, lowest_bit
from saelab_kernels.backends.cpu.largest import infinity_bits, kth_largest_bits
from saelab_kernels.backends.cpu.ragged import code_from_pairs, row_major_order
from saelab_kernels.backends.cpu.tiles import BITS, TILE_COLUMNS, TILE_ROWS, numbers, product_tiles, staged
from saelab_kernels.backends.cpu.workers import run_blocks
from saelab_kernels.request import Selection, SelectRequest
from saelab_kernels.rules import PerBatch


def select_per_batch(request: SelectRequest, rule: PerBatch) -> Selection:
    """`PerBatch` by plain scores."""
    rows = request.x.shape[0]
    quota = min(rule.budget(rows), rows * request.n_columns)
    limit = _RisingLimit(quota + int(request.boundary), request)
    pairs = _collect(request, limit) if limit.quota else _Pairs.none(request)
    kept, boundary = _largest_pairs(pairs, quota)
    return Selection(
        code_from_pairs(kept.rows, kept.columns, kept.scores, request),
        boundary=request.x.new_tensor(boundary) if request.boundary else None,
    )


def select_threshold(request: SelectRequest) -> Selection:
    """`Threshold` by plain scores."""
    assert request.theta is not None
    theta = request.of_columns(request.theta) if request.theta.ndim else request.theta
    theta = numbers(theta.expand(request.n_columns).contiguous())
    kept = _collect(request, _FixedLimit(np.maximum(theta, 0)))
    band = None
    if request.band:
        # Collected a little too generously: the comparison that counts is the one with theta itself.
        below = np.nextafter(theta - theta.dtype.type(request.band), theta.dtype.type(-np.inf))
        near = _collect(request, _FixedLimit(below))
        inside = np.abs(near.scores - theta[near.columns]) < theta.dtype.type(request.band / 2)
        band = near.where(inside)
    return Selection(
        code_from_pairs(kept.rows, kept.columns, kept.scores, request),
        band=None if band is None else code_from_pairs(band.rows, band.columns, band.scores, request),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Scored pairs."""

    scores: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def none(cls, request: SelectRequest) -> _Pairs:
        return cls.empty(0, numbers(request.x.new_zeros(0)).dtype)

    @classmethod
    def empty(cls, capacity: int, dtype: np.dtype) -> _Pairs:
        return cls(np.empty(capacity, dtype), np.empty(capacity, np.int32), np.empty(capacity, np.int32))

    def where(self, chosen: np.ndarray | slice) -> _Pairs:
        return _Pairs(self.scores[chosen], self.rows[chosen], self.columns[chosen])

    def write(self, first: _Pairs) -> None:
        """Overwrites the first pairs."""
        for mine, new in zip(
            (self.scores, self.rows, self.columns), (first.scores, first.rows, first.columns), strict=True
        ):
            mine[: new.shape[0]] = new

    def with_room(self, count: int, more: int) -> _Pairs:
        """The first `count` pairs with room for `more`; moved to a larger place where there is none."""
        if count + more <= self.scores.shape[0]:
            return self
        larger = _Pairs.empty(2 * count + more, self.scores.dtype)
        for new, old in zip(
            (larger.scores, larger.rows, larger.columns), (self.scores, self.rows, self.columns), strict=True
        ):
            new[:count] = old[:count]
        return larger


class _FixedLimit:
    """A limit for each column that is known beforehand."""

    one: np.generic
    """Used where `each` is None."""

    def __init__(self, limits: np.ndarray) -> None:
        self.one, self.each = limits.dtype.type(0), limits

    def raised_by(self, pairs: _Pairs, count: int) -> int:
        return count


class _RisingLimit:
    """The quota-th largest score that any thread has seen, 0 at first."""

    def __init__(self, quota: int, request: SelectRequest) -> None:
        self.quota = quota
        self._lock = threading.Lock()
        self._bits = np.zeros(1, BITS[request.x.dtype])
        self._limit = self._bits.view(numbers(request.x.new_zeros(0)).dtype)
        self.each = None

    @property
    def one(self) -> np.generic:
        return self._limit[0]

    def raised_by(self, pairs: _Pairs, count: int) -> int:
        """Forget what cannot be kept, where a thread holds too much; returns how many pairs are left."""
        if count <= 2 * self.quota:
            return count
        bits = pairs.scores.view(self._bits.dtype)
        smallest = kth_largest_bits(bits, count, self.quota)
        with self._lock:
            # What equals the smallest may still be kept, so the limit stays just below it. Where it is NaN the
            # limit is infinity, above which only NaN is left.
            self._bits[0] = max(self._bits[0], min(smallest - 1, infinity_bits(bits)), 0)
        count = _keep_from(bits, pairs.scores, pairs.rows, pairs.columns, count, smallest)
        if count <= 2 * self.quota:
            return count
        # Masses of equal scores: of those that a thread has seen only the first in row-major order can be kept.
        order = row_major_order(pairs.rows[:count] - self._first_row(pairs, count), TILE_ROWS)
        kept, _ = _largest_pairs(pairs.where(order), self.quota)
        pairs.write(kept)
        return self.quota

    @staticmethod
    def _first_row(pairs: _Pairs, count: int) -> int:
        """First row of the block that these pairs are of."""
        return int(pairs.rows[:count].min()) // TILE_ROWS * TILE_ROWS


def _collect(request: SelectRequest, limit: _FixedLimit | _RisingLimit) -> _Pairs:
    """All pairs above the limit, in row-major order."""
    x, rows = request.x.detach(), request.x.shape[0]
    features = request.of_columns(request.W_enc.detach().t()).contiguous()
    offsets = numbers(request.of_columns(request.b_enc).contiguous())
    blocks = -(-rows // TILE_ROWS)
    found: list[_Pairs] = [_Pairs.none(request)] * blocks
    room = TILE_ROWS * TILE_COLUMNS

    def block(index: int) -> None:
        start = index * TILE_ROWS
        height = min(TILE_ROWS, rows - start)
        pairs, count = _Pairs.empty(room, offsets.dtype), 0
        for first, tile in product_tiles(staged(x, start), features):
            pairs = pairs.with_room(count, room)
            held = (pairs.scores, pairs.scores.view(BITS[x.dtype]), pairs.rows, pairs.columns)
            count = _collect_tile(tile[:height], offsets, first, limit.one, limit.each, start, *held, count)
            count = limit.raised_by(pairs, count)
        order = row_major_order(pairs.rows[:count] - start, height)
        found[index] = pairs.where(order)

    run_blocks(block, blocks)
    if not found:
        return _Pairs.none(request)
    return _Pairs(*(np.concatenate([getattr(part, name) for part in found]) for name in _Pairs.__slots__))


def _largest_pairs(pairs: _Pairs, quota: int) -> tuple[_Pairs, float]:
    """The `quota` largest of pairs in row-major order, of equal ones the earlier; and the next score, or 0."""
    if pairs.scores.shape[0] <= quota:
        return pairs, 0.0
    if quota == 0:
        return pairs.where(slice(0, 0)), float(pairs.scores.max())
    bits = pairs.scores.view(BITS[torch.from_numpy(pairs.scores).dtype])
    kth = kth_largest_bits(bits, bits.shape[0], quota)
    ties = np.flatnonzero(bits == kth)
    keep = bits > kth
    keep[ties[: quota - int(keep.sum())]] = True
    return pairs.where(keep), float(pairs.scores[bits == bits[~keep].max()][0])


@loop
def _collect_tile(tile, offsets, first, limit, limits, first_row, scores, bits, rows, columns, count):
    """Appends a tile's pairs above `limit`, or above `limits` of their columns if not None; returns the new count."""
    n = tile.shape[1]
    whole = n // LANES * LANES
    positive = np.iinfo(bits.dtype).max
    for r in range(tile.shape[0]):
        row = tile[r]
        for start in range(0, n, LANES):
            if start < whole:
                if limits is None:
                    mask = above_mask(row, offsets, start, first + start, limit)
                else:
                    mask = above_mask(row, offsets, start, first + start, limits)
            else:
                mask = np.uint64(0)
                for j in range(start, n):
                    if limits is not None:
                        limit = limits[first + j]
                    if not (row[j] + offsets[first + j] <= limit):
                        mask |= np.uint64(1) << np.uint64(j - start)
            while mask:
                j = start + lowest_bit(mask)
                mask &= mask - np.uint64(1)
                score = row[j] + offsets[first + j]
                scores[count] = score
                if score != score:
                    bits[count] &= positive  # a NaN may have a sign, which must not order it
                rows[count] = first_row + r
                columns[count] = first + j
                count += 1
    return count


@loop
def _keep_from(bits, scores, rows, columns, count, smallest):
    """Keeps the pairs whose bits reach `smallest`, in their order; returns how many they are."""
    kept = 0
    for i in range(count):
        score, row, column, keep = scores[i], rows[i], columns[i], bits[i] >= smallest
        scores[kept] = score
        rows[kept] = row
        columns[kept] = column
        kept += keep
    return kept
