"""Candidates of interval lists get their float32 scores; rows that lost candidates are done again in full."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from saelab_kernels.backends.triton.select_bound import BLOCK_D
from saelab_kernels.backends.triton.select_filter import pair_score
from saelab_kernels.backends.triton.select_lists import RowLists, compact, offer
from saelab_kernels.backends.triton.tiles import Operands, SelectPlan, launch_options

CANDIDATES = 16
"""Features whose rows are read together: with `BLOCK_D` float32, 16 numbers a thread. Not measured."""
ALL = 64
"""The same where all features are read."""


@triton.jit
@no_type_check
def pre_activations(
    x, x_step, W, W_row_step, W_column_step, bias, col, inside, d, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """z of one token and `ROWS` features. The order of the sums does not depend on which features they are."""
    acc = tl.zeros((ROWS, BLOCK), tl.float32)
    features = W + col.to(tl.int64)[:, None] * W_row_step
    for start in range(0, d, BLOCK):
        j = start + tl.arange(0, BLOCK)
        token = tl.load(x + j.to(tl.int64) * x_step, mask=j < d, other=0).to(tl.float32)
        part = features + j.to(tl.int64)[None, :] * W_column_step
        w = tl.load(part, mask=inside[:, None] & (j < d)[None, :], other=0).to(tl.float32)
        acc += token[None, :] * w
    return tl.sum(acc, axis=1) + tl.load(bias + col, mask=inside, other=0).to(tl.float32)


@triton.jit
@no_type_check
def rescore_kernel(
    x, x_row_step, x_step, W, W_row_step, W_column_step, bias, scale, score, extra, column, count, lost, keep,
    first_row, d, capacity,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, LIST_BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row: narrows an interval list, then puts scores and z in the places of the bounds."""
    row = tl.program_id(0)
    x_row = x + (first_row + row).to(tl.int64) * x_row_step
    score += row.to(tl.int64) * capacity
    extra += row.to(tl.int64) * capacity
    column += row.to(tl.int64) * capacity
    if tl.load(lost + row) == 0:
        n, _ = compact(score, extra, column, tl.load(count + row), tl.load(keep + row), True, LIST_BLOCK)
        for start in range(0, n, ROWS):
            place = start + tl.arange(0, ROWS)
            inside = place < n
            col = tl.load(column + place, mask=inside, other=0)
            z = pre_activations(
                x_row, x_step, W, W_row_step, W_column_step, bias, col, inside, d, ROWS, BLOCK
            )
            value = pair_score(z, None, scale, None, col, row, inside, False)
            tl.store(score + place, value, mask=inside)
            tl.store(extra + place, z, mask=inside)
        tl.store(count + row, n)


@triton.jit
@no_type_check
def redo_kernel(
    x, x_row_step, x_step, W, W_row_step, W_column_step, bias, scale, score, extra, column, count, lost, keep,
    first_row, n_columns, d, capacity, limit,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, LIST_BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row: nothing, unless the row is lost; then an exact list over all columns.

    That reads the whole encoder for one row, tens of milliseconds, estimated. It ends early once the cut is infinite,
    as in rows of nothing but NaN.
    """
    row = tl.program_id(0)
    if tl.load(lost + row) != 0:
        x_row = x + (first_row + row).to(tl.int64) * x_row_step
        score += row.to(tl.int64) * capacity
        extra += row.to(tl.int64) * capacity
        column += row.to(tl.int64) * capacity
        wanted = tl.load(keep + row)
        n = tl.full((), 0, tl.int32)
        cut = tl.full((), 0, tl.int32)
        gone = tl.full((), 0, tl.int32)
        begin = tl.full((), 0, tl.int32)
        while (begin < n_columns) & (cut < 0x7F800000):
            col = begin + tl.arange(0, ROWS)
            inside = col < n_columns
            z = pre_activations(
                x_row, x_step, W, W_row_step, W_column_step, bias, col, inside, d, ROWS, BLOCK
            )
            value = pair_score(z, None, scale, None, col, row, inside, False)
            n, cut, gone = offer(
                score, extra, column, value, z, col, inside, n, cut, gone, wanted, limit, capacity,
                False, LIST_BLOCK,
            )  # fmt: skip
            begin += ROWS
        tl.store(count + row, n)


def rescore(lists: RowLists, operands: Operands, plan: SelectPlan, start: int, rows: int) -> None:
    """Turns the interval lists of the tokens from `start` on into lists of float32 scores with z beside them."""
    x, W = operands.x, operands.W
    tensors = (
        x, x.stride(0), x.stride(1), W, W.stride(0), W.stride(1), operands.bias, operands.scale,
        lists.score, lists.extra, lists.column, lists.count, lists.lost, lists.keep,
    )  # fmt: skip
    capacity = lists.score.shape[1]
    rescore_kernel[(rows,)](
        *tensors, start, W.shape[1], capacity,
        ROWS=CANDIDATES, BLOCK=BLOCK_D, LIST_BLOCK=plan.list_block, **launch_options(),
    )  # fmt: skip
    redo_kernel[(rows,)](
        *tensors, start, W.shape[0], W.shape[1], capacity, lists.limit,
        ROWS=min(ALL, plan.chunk), BLOCK=BLOCK_D, LIST_BLOCK=plan.list_block, **launch_options(8),
    )  # fmt: skip
