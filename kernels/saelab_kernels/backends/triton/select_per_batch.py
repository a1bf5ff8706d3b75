"""The largest of the whole batch: the best of every row are pooled, then one cut goes through the pool.

A row's pool has fixed room. The result is exact if no row has all of its room chosen; a row that has more to give
than its room would overflow. Row tiles that come later start with the cut of the pool so far: what does
not pass it cannot be chosen any more, because an equal of an earlier row goes first.
"""

from __future__ import annotations

import math

import torch

from saelab_kernels.backends.triton.select_exact import ExactTiles
from saelab_kernels.backends.triton.select_filter import Chosen, finish, scores_of
from saelab_kernels.backends.triton.select_lists import RowLists
from saelab_kernels.backends.triton.select_quota import quota_cut
from saelab_kernels.backends.triton.select_ragged import capturing, copy_rows, ragged_code, running_sums
from saelab_kernels.backends.triton.tiles import Operands, SelectPlan, operands_of
from saelab_kernels.request import Selection, SelectRequest
from saelab_kernels.rules import PerBatch
from saelab_kernels.shapes import Int, Tensor

_MORE = 8
"""Times the room of a row grows, and times the mean number of kept pairs a row has room for at first."""


def select_per_batch(request: SelectRequest, rule: PerBatch, plan: SelectPlan) -> Selection:
    """`PerBatch`: a ragged code, columns rising in a row.

    Reads one flag and one number from the device, and begins again with more room where the room of a row (`row_room`
    of the plan or 8 k, less one) did not suffice. While a CUDA graph is captured, `overflow` says so instead.
    """
    rows, n = request.x.shape[0], request.n_columns
    quota = min(rule.budget(rows), rows * n)
    operands = operands_of(request, plan)
    mean = None if operands.mean is None else operands.mean.to(request.x.dtype)
    room = min(n, max(plan.row_room, _MORE * math.ceil(rule.k)))
    while True:
        pool = _pooled(operands, plan, quota, room)
        cut, ties = _cut(pool, quota)
        widths, best_left = _widths(pool.key, cut, ties)
        offsets = running_sums(widths[0] + widths[1])
        overflow = ((widths[0] + widths[1]) >= room).any() & (room < n)
        captured = capturing(request.x)
        total = quota
        if not captured:
            total, again = torch.stack([offsets[-1], overflow.to(torch.int64)]).tolist()
            if again:
                room = min(n, room * _MORE)
                continue
        z = pool.z.new_zeros(total)
        column = pool.column.new_zeros(total)
        slots = (pool.key, pool.z, pool.column)
        copy_rows(slots, (z, column), offsets[:-1], None, (cut, widths[1]), plan.list_block)
        return Selection(
            ragged_code(request, z, column, offsets, overflow if captured else None),
            boundary=scores_of(best_left, request.x.dtype) if request.boundary else None,
            attribution_mean=mean,
        )


def _pooled(operands: Operands, plan: SelectPlan, quota: int, room: int) -> Chosen:
    """The `room` best of every row that can be among the best `quota` or be the boundary."""
    rows = operands.rows
    pool = Chosen.allocate((rows, room), None, operands.dtype, operands.x.device)
    if rows == 0 or room == 0:
        return pool
    lists = RowLists.allocate(
        plan.height, room, operands.n, plan.chunk, operands.dtype, operands.x.device,
        extra=operands.scored, interval=False,
    )  # fmt: skip
    tiles = ExactTiles(operands, plan)
    budgets = torch.full((rows,), room, dtype=torch.int32, device=operands.x.device)
    starts = torch.arange(rows, device=operands.x.device) * room
    cut = None
    for start in range(0, rows, plan.height):
        here = slice(start, min(start + plan.height, rows))
        lists.reset(budgets[here], cut)
        tiles.fill(lists, start, here.stop - start)
        finish(lists, budgets[here], starts[here], start, pool, plan)
        if here.stop < rows:
            cut = quota_cut(pool.key[: here.stop], quota + 1)[0]
    return pool


def _cut(pool: Chosen, quota: int) -> tuple[Int[Tensor, ""], Int[Tensor, ""]]:
    """See `quota_cut`; also for a quota of nothing and an empty pool."""
    if quota == 0 or pool.key.numel() == 0:
        none = pool.key.new_zeros(())
        return none + torch.iinfo(none.dtype).max, none.to(torch.int64)
    return quota_cut(pool.key, quota)


def _widths(
    key: Int[Tensor, "rows room"], cut: Int[Tensor, ""], ties: Int[Tensor, ""]
) -> tuple[Int[Tensor, "two rows"], Int[Tensor, ""]]:
    """Of each row, how many lie above the cut and how many of its equals are taken; the best key that is left."""
    equal = ((key == cut) & (key > 0)).sum(dim=1)
    before = running_sums(equal)[:-1]
    taken = torch.minimum((ties - before).clamp_min(0), equal)
    below = key.where(key < cut, 0)
    left = below.max() if key.numel() else cut.new_zeros(())
    left = cut.where((equal > taken).any(), left)
    return torch.stack([(key > cut).sum(dim=1), taken]), left
