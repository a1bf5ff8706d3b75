"""Lists of candidates, one a row, that grow under a rising cut and can never overflow.

A score that may be kept is positive, and the bits of a positive float rise with its value: read as an integer
they are its key. What is not positive has key 0, NaN has that of infinity. A score is admitted where its key is
above the row's cut. A list holds its entries in the order of their columns. When the next chunk might not
fit, it is compacted to the `keep` best, found by bisection over the keys (no sorting), of equal ones
those that came first; the cut rises to the last that stays. So at most `keep` stay, and a capacity of `keep` plus
one chunk always suffices. What comes later has a higher column and loses to an equal: strictly above is exact.

Interval lists hold a least and a most value of a score that is not known exactly. The `keep`-th largest least
value bounds the cut from below, and everything stays whose most value reaches it, so the true `keep` best are
among what stays. Their number has no bound in advance: a row that outgrows its list is marked as lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl

from saelab_kernels.shapes import Float, Int, Tensor

_CANDIDATES = 1024
"""Smallest room of an interval list, a chunk left out. A row with fewer than `keep` positive scores has all features
as candidates that may be positive, so the room must not only follow `keep`."""


@triton.jit
@no_type_check
def key_of(score):
    """The bits of a positive score, the bits of infinity for NaN, else 0."""
    if score.dtype == tl.float64:
        key = tl.where(score != score, 0x7FF0000000000000, tl.maximum(score.to(tl.int64, bitcast=True), 0))
    else:
        key = tl.where(score != score, 0x7F800000, tl.maximum(score.to(tl.int32, bitcast=True), 0))
    return key


@triton.jit
@no_type_check
def reached(score, n, trial, BLOCK: tl.constexpr):
    """How many of the first `n` scores have a key of at least `trial`, which is above 0."""
    total = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK)
        key = key_of(tl.load(score + place, mask=place < n, other=0))
        total += (key >= trial).to(tl.int32)
    return tl.sum(total, axis=0)


@triton.jit
@no_type_check
def key_range(score, n, BLOCK: tl.constexpr):
    """The smallest and the largest key of the first `n` scores; `n` is above 0."""
    least = key_of(tl.load(score))
    most = least
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK)
        key = key_of(tl.load(score + place, mask=place < n, other=0))
        most = tl.maximum(most, tl.max(key, axis=0))
        least = tl.minimum(least, tl.min(tl.where(place < n, key, most), axis=0))
    return least, most


@triton.jit
@no_type_check
def cut_of(score, n, keep, BLOCK: tl.constexpr):
    """A key t that separates the `keep` best, and how many surely lie above it.

    `keep` or more keys reach t, and the best `keep` are those above t with the first ones that equal it. Bisection
    ends early where exactly `keep` reach t; then t may lie between two keys. Fewer than `keep` keys give 0.
    """
    KEY: tl.constexpr = tl.int64 if score.dtype.element_ty == tl.float64 else tl.int32
    t = tl.full((), 0, KEY)
    above = tl.full((), 0, tl.int32)
    if (n >= keep) & (n > 0):
        # At least `keep` keys reach t, fewer than `keep` (so many: above) reach the end.
        t, end = key_range(score, n, BLOCK)
        end += 1
        found = n
        while (end - t > 1) & (found != keep):
            middle = t + (end - t) // 2
            found = reached(score, n, middle, BLOCK)
            if found >= keep:
                t = middle
            else:
                end = middle
                above = found
    return t, above


@triton.jit
@no_type_check
def staying(key, inside, t, room, equals_before):
    """Which of a block are among the best: above `t`, or equal to it and among the first `room` such."""
    equal = inside & (key == t) & (key > 0)
    rank = equals_before + tl.cumsum(equal.to(tl.int32), 0) - 1
    stays = inside & ((key > t) | (equal & (rank < room)))
    return stays, equals_before + tl.sum(equal.to(tl.int32), axis=0)


@triton.jit
@no_type_check
def compact(score, extra, column, n, keep, INTERVAL: tl.constexpr, BLOCK: tl.constexpr):
    """Keeps what can still be chosen, in order; returns the number of entries and the new cut."""
    tl.debug_barrier()  # what other threads appended must be visible
    t, above = cut_of(score, n, keep, BLOCK)
    if INTERVAL:
        t = tl.maximum(t - 1, 0)
    written = tl.full((), 0, tl.int32)
    equals = tl.full((), 0, tl.int32)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < n
        low = tl.load(score + place, mask=inside, other=0)
        col = tl.load(column + place, mask=inside, other=0)
        if extra is not None:
            more = tl.load(extra + place, mask=inside, other=0)
        tl.debug_barrier()  # all of the block is read before any of it is overwritten
        if INTERVAL:
            stays = inside & (key_of(more) > t)
        else:
            stays, equals = staying(key_of(low), inside, t, keep - above, equals)
        to = written + tl.cumsum(stays.to(tl.int32), 0) - 1
        tl.store(score + to, low, mask=stays)
        tl.store(column + to, col, mask=stays)
        if extra is not None:
            tl.store(extra + to, more, mask=stays)
        written += tl.sum(stays.to(tl.int32), axis=0)
    tl.debug_barrier()
    return written, t


@triton.jit
@no_type_check
def offer(
    score, extra, column, low, more, col, inside, n, cut, lost, keep, limit, capacity,
    INTERVAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Offers a chunk of later columns to a row's list; returns its new `n`, `cut` and `lost`.

    `low` is ranked and `more` goes beside it; with `INTERVAL` they are a score's least and most value.
    """
    key = key_of(more) if INTERVAL else key_of(low)
    added = tl.sum((inside & (key > cut)).to(tl.int32), axis=0)
    if added > 0:
        if n + added > limit:
            n, cut = compact(score, extra, column, n, keep, INTERVAL, BLOCK)
        admitted = inside & (key > cut)
        if INTERVAL:
            added = tl.sum(admitted.to(tl.int32), axis=0)
            full = n + added > capacity
            lost = tl.where(full, 1, lost)
            # The bits of the largest integer: nothing is above it, so nothing is admitted from now on.
            cut = tl.where(full, 0x7FFFFFFF, cut)
            n = tl.where(full, 0, n)
            admitted = inside & (key > cut)
        to = n + tl.cumsum(admitted.to(tl.int32), 0) - 1
        tl.store(score + to, low, mask=admitted)
        tl.store(column + to, col, mask=admitted)
        if extra is not None:
            tl.store(extra + to, more, mask=admitted)
        n += tl.sum(admitted.to(tl.int32), axis=0)
    return n, cut, lost


@dataclass(frozen=True, slots=True, eq=False)
class RowLists:
    """The lists of one tile of rows. Memory is reused from tile to tile."""

    score: Float[Tensor, "height capacity"]
    """float32, or float64 for float64 weights; what is ranked, or its least value."""
    extra: Float[Tensor, "height capacity"] | None
    """z where it is not the score, or the most value of the score; None where neither is needed."""
    column: Int[Tensor, "height capacity"]
    """int32; rises along a row."""
    count: Int[Tensor, " height"]
    """int32; entries in use."""
    cut: Int[Tensor, " height"]
    """Key that a score must be above to be admitted."""
    keep: Int[Tensor, " height"]
    """int32; how many are wanted."""
    lost: Int[Tensor, " height"]
    """int32; 1 where an interval list did not suffice."""
    limit: int
    """Entries beyond which a list is compacted before the next chunk comes."""

    @classmethod
    def allocate(
        cls, height: int, most: int, n: int, chunk: int, dtype: torch.dtype, device: torch.device,
        *, extra: bool, interval: bool,
    ) -> RowLists:  # fmt: skip
        """Room to keep up to `most` of `n` columns that are offered in chunks."""
        wanted = max(4 * most, _CANDIDATES) if interval else most
        capacity = min(wanted, n) + chunk

        def floats() -> Tensor:
            return torch.empty(height, capacity, dtype=dtype, device=device)

        def words(kind: torch.dtype) -> Tensor:
            return torch.zeros(height, dtype=kind, device=device)

        return cls(
            score=floats(),
            extra=floats() if extra or interval else None,
            column=torch.empty(height, capacity, dtype=torch.int32, device=device),
            count=words(torch.int32),
            cut=words(key_dtype(dtype)),
            keep=words(torch.int32),
            lost=words(torch.int32),
            limit=min(capacity, max(4 * most, 256)),
        )

    def reset(self, keep: Int[Tensor, " rows"], cut: Int[Tensor, ""] | None = None) -> None:
        """Empties the lists; `keep` has one entry a row of the tile, `cut` is a key to start with."""
        self.count.zero_()
        self.lost.zero_()
        self.keep[: keep.shape[0]].copy_(keep)
        if cut is None:
            self.cut.zero_()
        else:
            self.cut.copy_(cut.expand_as(self.cut))


def key_dtype(dtype: torch.dtype) -> torch.dtype:
    """The integers that are the keys of these floats."""
    return torch.int64 if dtype == torch.float64 else torch.int32
