"""The largest of each column: the roles of rows and columns are exchanged, features pick tokens."""

from __future__ import annotations

import torch

from saelab_kernels.backends.triton.select_filter import Chosen, finish, offer_tile, scores_of
from saelab_kernels.backends.triton.select_lists import RowLists
from saelab_kernels.backends.triton.select_ragged import ragged_code, running_sums
from saelab_kernels.backends.triton.tiles import Operands, SelectPlan, multiply, operands_of
from saelab_kernels.request import Selection, SelectRequest
from saelab_kernels.shapes import Int, Tensor


def select_per_feature(request: SelectRequest, plan: SelectPlan) -> Selection:
    """`PerFeature`: a ragged code, columns rising in a row.

    Reads the largest budget, the sum of the budgets and the number of pairs from the device, so it cannot be captured
    in a CUDA graph. Memory: a list of the largest budget for `height` features at a time, and all budgets' pairs.
    """
    assert request.budgets is not None
    x, rows, n = request.x, request.x.shape[0], request.n_columns
    operands = operands_of(request, plan)
    budgets = request.of_columns(request.budgets).clamp_max(rows)
    most = total = 0
    if rows and n:
        most, total = torch.stack([budgets.max(), budgets.sum()]).tolist()
    chosen = Chosen.allocate((total,), n if request.boundary else None, operands.dtype, x.device)
    if rows and n:
        _fill(operands, plan, budgets, chosen, most)
    owner = torch.arange(n, device=x.device).repeat_interleave(budgets, output_size=total)
    place = chosen.column.to(torch.int64) * max(n, 1) + owner
    place, order = place.masked_fill(chosen.key == 0, torch.iinfo(torch.int64).max).sort()
    offsets = torch.searchsorted(place, torch.arange(rows + 1, device=x.device) * n)
    used = int(offsets[-1])
    order, place = order[:used], place[:used]
    local = (place % max(n, 1)).to(torch.int32)
    return Selection(
        ragged_code(request, chosen.z[order], local, offsets, None),
        boundary=None if chosen.boundary is None else scores_of(chosen.boundary, x.dtype),
        attribution_mean=None if operands.mean is None else operands.mean.to(x.dtype),
    )


def _fill(
    operands: Operands, plan: SelectPlan, budgets: Int[Tensor, " n"], chosen: Chosen, most: int
) -> None:
    """Feature tile after feature tile: lists over all tokens, then the best of each list."""
    rows, n = operands.rows, operands.n
    extra = int(chosen.boundary is not None)
    lists = RowLists.allocate(
        plan.height, most + extra, rows, plan.chunk, operands.dtype, operands.x.device,
        extra=operands.scored, interval=False,
    )  # fmt: skip
    starts = running_sums(budgets)[:-1]
    budgets = budgets.to(torch.int32)
    width = plan.tile_width(operands.x.dtype, 1 if operands.g is None else 2)
    buffer = operands.x.new_empty(min(plan.height, n) * min(width, rows))
    effects = None if operands.g is None else torch.empty_like(buffer)
    for start in range(0, n, plan.height):
        here = slice(start, min(start + plan.height, n))
        lists.reset(budgets[here] + extra)
        for first in range(0, rows, width):
            tokens = slice(first, first + width)
            tile = multiply(operands.W[here], operands.x[tokens], buffer)
            effect = None
            if effects is not None and operands.g is not None and operands.W_dec is not None:
                effect = multiply(operands.W_dec[here], operands.g[tokens], effects)
            offer_tile(
                lists, operands, plan, tile, effect, (start, first), here.stop - start, row_is_feature=True
            )
        finish(lists, budgets[here], starts[here], start, chosen, plan)
