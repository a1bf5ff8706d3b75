"""Rules that couple tokens, or keep a varying number: pairs are collected tile by tile under a rising cut.

A pair is admitted while its score lies above the cut. When too many are held, only those that can still be
chosen stay, and the cut rises to the smallest of them, so that the batch is never sorted as a whole: a
quota of M holds at most about four M pairs, and about M ln(tiles) are admitted in all. Pairs come in
row-major order, so a later pair that equals the cut loses to the ones that are held: strictly above is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from saelab_kernels.backends.stock_tiles import ScoreTile, joined_means, score_tiles
from saelab_kernels.code import SparseCode
from saelab_kernels.request import Selection, SelectRequest
from saelab_kernels.rules import PerBatch, PerFeature, Rule, Threshold
from saelab_kernels.shapes import Bool, Float, Int, Tensor

_SMALLEST_LIMIT = 1 << 16
"""Pairs that are always held without pruning, so that small quotas do not prune at every tile."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Candidates in row-major order."""

    score: Float[Tensor, " pairs"]
    """NaN stands as infinity: it ranks first."""
    z: Float[Tensor, " pairs"]
    position: Int[Tensor, " pairs"]
    """int64, `row * n_columns + local column`."""

    @classmethod
    def cat(cls, parts: list[Pairs]) -> Pairs:
        """All pairs of `parts`, in their order."""
        return cls(
            torch.cat([part.score for part in parts]),
            torch.cat([part.z for part in parts]),
            torch.cat([part.position for part in parts]),
        )

    def where(self, mask: Bool[Tensor, " pairs"]) -> Pairs:
        """The pairs at which `mask` holds."""
        return Pairs(self.score[mask], self.z[mask], self.position[mask])


@runtime_checkable
class Quota(Protocol):
    """How many pairs may stay, and which."""

    cut: Tensor
    """One score or one a column; only pairs above it can still be chosen. Never below 0."""
    limit: float
    """Pairs held before pruning."""

    def prune(self, pairs: Pairs) -> Pairs:
        """The pairs that can still be chosen or bound the choice; raises the cut."""
        ...

    def finish(self, pairs: Pairs) -> tuple[Pairs, Tensor | None]:
        """The choice, and the largest positive score outside it."""
        ...


def select_ragged(request: SelectRequest) -> Selection:
    """`PerBatch`, `PerFeature` and `Threshold`: an exact ragged code."""
    quota = _quota(request)
    held: list[Pairs] = []
    near: list[Pairs] = []
    means: list[Tensor] = []
    n_held = 0
    for tile in score_tiles(request):
        rows, n = tile.z.shape
        step = rows if rows * n <= quota.limit else max(1, int(quota.limit // n))
        for first in range(0, rows, step):
            part = slice(first, first + step)
            admitted = (tile.score[part] <= quota.cut).logical_not_()
            held.append(_collect(tile, first, part, admitted))
            n_held += held[-1].score.shape[0]
            if n_held > quota.limit:
                held = [quota.prune(Pairs.cat(held))]
                n_held = held[0].score.shape[0]
        if request.band and request.theta is not None:
            theta = request.of_columns(request.theta) if request.theta.ndim else request.theta
            near.append(_collect(tile, 0, slice(0, rows), (tile.score - theta).abs() < request.band / 2))
        if tile.attribution_mean is not None:
            means.append(tile.attribution_mean)
    chosen, boundary = quota.finish(Pairs.cat(held) if held else _no_pairs(request))
    return Selection(
        _code(request, chosen),
        boundary=boundary if request.boundary else None,
        band=_code(request, Pairs.cat(near) if near else _no_pairs(request)) if request.band else None,
        attribution_mean=joined_means(request, means),
    )


def _collect(tile: ScoreTile, first: int, part: slice, mask: Tensor) -> Pairs:
    """The pairs of the rows `part` of a tile at which `mask` holds."""
    flat = mask.reshape(-1).nonzero().squeeze(1)
    z = tile.z[part].reshape(-1).index_select(0, flat)
    score = z if tile.score is tile.z else tile.score[part].reshape(-1).index_select(0, flat)
    score = score.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return Pairs(score, z, flat + (tile.start + first) * tile.z.shape[1])


def _code(request: SelectRequest, pairs: Pairs) -> SparseCode:
    """The ragged code of chosen pairs."""
    rows, n = request.x.shape[0], max(request.n_columns, 1)
    row, column = pairs.position // n, pairs.position % n
    offsets = torch.zeros(rows + 1, dtype=torch.int64, device=row.device)
    torch.cumsum(torch.bincount(row, minlength=rows), dim=0, out=offsets[1:])
    if request.columns is not None:
        column = request.columns[column]
    return SparseCode(pairs.z, column.to(torch.int32), request.W_enc.shape[1], offsets)


def _no_pairs(request: SelectRequest) -> Pairs:
    empty = request.x.new_zeros(0)
    return Pairs(empty, empty, torch.zeros(0, dtype=torch.int64, device=empty.device))


def _quota(request: SelectRequest) -> Quota:
    rule: Rule = request.rule
    if isinstance(rule, PerBatch):
        return _BatchQuota(
            request, min(rule.budget(request.x.shape[0]), request.x.shape[0] * request.n_columns)
        )
    if isinstance(rule, PerFeature):
        return _ColumnQuota(request)
    assert isinstance(rule, Threshold)
    return _Above(request)


class _Above:
    """`Threshold`: every pair above theta and above 0."""

    limit = torch.inf

    def __init__(self, request: SelectRequest) -> None:
        assert request.theta is not None
        theta = request.of_columns(request.theta) if request.theta.ndim else request.theta
        self.cut = theta.clamp_min(0)

    def prune(self, pairs: Pairs) -> Pairs:
        return pairs

    def finish(self, pairs: Pairs) -> tuple[Pairs, Tensor | None]:
        return pairs, None


class _BatchQuota:
    """`PerBatch`: the `quota` largest of all."""

    def __init__(self, request: SelectRequest, quota: int) -> None:
        self.quota = quota
        self.keep = quota + 1 if request.boundary else quota
        self.limit: float = max(2 * self.keep, _SMALLEST_LIMIT)
        self.cut = request.x.new_full((), torch.inf if self.keep == 0 else 0.0)

    def prune(self, pairs: Pairs) -> Pairs:
        pairs = pairs.where(_largest_mask(pairs.score, self.keep))
        if pairs.score.shape[0] == self.keep and self.keep > 0:
            self.cut = pairs.score.min()
        return pairs

    def finish(self, pairs: Pairs) -> tuple[Pairs, Tensor | None]:
        pairs = self.prune(pairs)
        mask = _largest_mask(pairs.score, self.quota)
        left_out = pairs.score[~mask]
        boundary = left_out.max() if left_out.shape[0] else pairs.score.new_zeros(())
        return pairs.where(mask), boundary


class _ColumnQuota:
    """`PerFeature`: the `budgets[i]` largest of every column."""

    def __init__(self, request: SelectRequest) -> None:
        assert request.budgets is not None
        self.budgets = request.of_columns(request.budgets)
        self.keep = self.budgets + 1 if request.boundary else self.budgets
        possible = int(self.keep.clamp_max(request.x.shape[0]).sum())
        self.limit: float = max(2 * possible, _SMALLEST_LIMIT)
        self.cut = request.x.new_zeros(request.n_columns).masked_fill_(self.keep == 0, torch.inf)

    def prune(self, pairs: Pairs) -> Pairs:
        perm, column, rank = self._ranks(pairs)
        last = rank == self.keep[column] - 1
        self.cut[column[last]] = pairs.score[perm[last]]
        return pairs.where(_scatter_mask(perm, rank < self.keep[column]))

    def finish(self, pairs: Pairs) -> tuple[Pairs, Tensor | None]:
        perm, column, rank = self._ranks(pairs)
        following = rank == self.budgets[column]
        boundary = pairs.score.new_zeros(self.cut.shape[0])
        boundary[column[following]] = pairs.score[perm[following]]
        return pairs.where(_scatter_mask(perm, rank < self.budgets[column])), boundary

    def _ranks(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs by column and falling score: their places, columns, and ranks inside the column."""
        n = max(self.cut.shape[0], 1)
        falling = pairs.score.sort(descending=True, stable=True).indices
        column, by_column = (pairs.position[falling] % n).sort(stable=True)
        starts = torch.searchsorted(column, torch.arange(n, device=column.device))
        rank = torch.arange(column.shape[0], device=column.device) - starts[column]
        return falling[by_column], column, rank


def _largest_mask(score: Float[Tensor, " pairs"], count: int) -> Bool[Tensor, " pairs"]:
    """The `count` largest, of equal ones the earlier; all if there are not more."""
    if score.shape[0] <= count:
        return torch.ones_like(score, dtype=torch.bool)
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    smallest = score.kthvalue(score.shape[0] - count + 1).values
    mask = score > smallest
    ties = (score == smallest).nonzero().squeeze(1)
    mask[ties[: count - int(mask.sum())]] = True
    return mask


def _scatter_mask(perm: Tensor, mask: Tensor) -> Tensor:
    """`mask`, given in the order `perm`, in the original order."""
    return torch.zeros_like(mask).scatter_(0, perm, mask)
