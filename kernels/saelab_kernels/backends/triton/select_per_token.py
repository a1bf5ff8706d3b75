"""The largest of each row: nothing here waits for the device, and no shape depends on what it computes."""

from __future__ import annotations

import torch

from saelab_kernels.backends.triton.select_bound import BoundedTiles
from saelab_kernels.backends.triton.select_exact import ExactTiles
from saelab_kernels.backends.triton.select_filter import Chosen, finish, scores_of
from saelab_kernels.backends.triton.select_lists import RowLists
from saelab_kernels.backends.triton.select_rescore import rescore
from saelab_kernels.backends.triton.tiles import Operands, SelectPlan, operands_of
from saelab_kernels.code import SparseCode
from saelab_kernels.request import Selection, SelectRequest
from saelab_kernels.rules import PerToken

_CANDIDATE_SHARE = 8
"""Candidates are worth their trouble where at most one column in so many is kept."""


def select_per_token(request: SelectRequest, rule: PerToken, plan: SelectPlan) -> Selection:
    """`PerToken`: a uniform code of width `min(k, columns)`, rows sorted by falling score.

    Can be captured in a CUDA graph: no host synchronisation, launches that depend on shapes only.
    """
    x, rows, n = request.x, request.x.shape[0], request.n_columns
    width = min(rule.k, n)
    operands = operands_of(request, plan)
    chosen = Chosen.allocate((rows, width), rows if request.boundary else None, operands.dtype, x.device)
    if rows and width:
        if request.budgets is None:
            budgets = torch.full((rows,), width, dtype=torch.int32, device=x.device)
        else:
            budgets = request.budgets.clamp_max(n).to(torch.int32)
        _fill(operands, plan, budgets, chosen, width + int(request.boundary))
    order = chosen.key.sort(dim=1, descending=True, stable=True).indices
    values = chosen.z.gather(1, order).to(x.dtype)
    columns = chosen.column.gather(1, order)
    if request.columns is not None and n:
        columns = request.columns.index_select(0, columns.reshape(-1)).view(rows, width).to(torch.int32)
    boundary = None if chosen.boundary is None else scores_of(chosen.boundary, x.dtype)
    mean = None if operands.mean is None else operands.mean.to(x.dtype)
    return Selection(
        SparseCode(values, columns, request.W_enc.shape[1]), boundary=boundary, attribution_mean=mean
    )


def _fill(operands: Operands, plan: SelectPlan, budgets: torch.Tensor, chosen: Chosen, most: int) -> None:
    """Row tile after row tile: lists over all columns, then the best of each list."""
    rows, width = chosen.key.shape
    bounded = (
        plan.precision == "rescored"
        and operands.weight is None
        and operands.dtype == torch.float32
        and most * _CANDIDATE_SHARE <= operands.n
    )
    tiles = BoundedTiles.of(operands, plan) if bounded else ExactTiles(operands, plan)
    lists = RowLists.allocate(
        plan.height, most, operands.n, plan.chunk, operands.dtype, operands.x.device,
        extra=operands.scored, interval=bounded,
    )  # fmt: skip
    starts = torch.arange(rows, device=budgets.device) * width
    for start in range(0, rows, plan.height):
        here = slice(start, min(start + plan.height, rows))
        lists.reset(budgets[here] + (most - width))
        tiles.fill(lists, start, here.stop - start)
        if bounded:
            rescore(lists, operands, plan, start, here.stop - start)
        finish(lists, budgets[here], starts[here], start, chosen, plan)
