"""Device functions over the entries of one feature: gradients of the entries, and the feature's rows of gradients.

The entries of a dense feature were done before, in chunks (see `partial`); here their parts are added, in order.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from saelab_kernels.backends.triton.rows import add_partial_rows, add_rows, inner_products


@triton.jit
@no_type_check
def entry_gradients(
    values, rows, g_values, g_out, g_stride, w, dz, first, last, width,
    E: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Writes `dz` of the entries in `[first, last)` of the feature with the decoder row at `w`.

    Returns `sum value <g_out[row], w>`, the part of the decoder's gradient along `w`, and `sum dz`.
    """
    along = tl.zeros((E,), ACC)
    total = tl.zeros((E,), ACC)
    for start in range(first, last, E):
        entry = start + tl.arange(0, E)
        used = entry < last
        value = tl.load(values + entry, mask=used, other=0).to(ACC)
        slope = tl.zeros((E,), ACC)
        if g_out is not None:
            row = tl.load(rows + entry, mask=used, other=0).to(tl.int64)
            slope = inner_products(
                g_out + row * g_stride, w + tl.zeros((1,), tl.int64), used, width, E, BLOCK, ACC
            )
            along += value * slope
        if g_values is not None:
            slope += tl.load(g_values + entry, mask=used, other=0).to(ACC)
        slope = tl.where(value > 0, slope, 0)
        tl.store(dz + entry, slope, mask=used)
        total += slope
    return tl.sum(along, axis=0), tl.sum(total, axis=0)


@triton.jit
@no_type_check
def feature_sums(
    values, rows, g_values, g_out, g_stride, w, dz, partial_sums, first, last, first_chunk, last_chunk, width,
    E: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What `entry_gradients` returns, for all entries `[first, last)` of a feature; their `dz` can then be read."""
    if last_chunk > first_chunk:
        along_parts = tl.zeros((E,), ACC)
        total_parts = tl.zeros((E,), ACC)
        for start in range(first_chunk, last_chunk, E):
            place = start + tl.arange(0, E)
            along_parts += tl.load(partial_sums + 2 * place, mask=place < last_chunk, other=0)
            total_parts += tl.load(partial_sums + 2 * place + 1, mask=place < last_chunk, other=0)
        along = tl.sum(along_parts, axis=0)
        total = tl.sum(total_parts, axis=0)
    else:
        along, total = entry_gradients(
            values, rows, g_values, g_out, g_stride, w, dz, first, last, width, E, BLOCK, ACC
        )
    return along, total


@triton.jit
@no_type_check
def feature_gradient(
    weights, rows, table, stride, partial, first, last, first_chunk, last_chunk, width, column, inside,
    E: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The feature's row of a gradient at `column`: its entries' weighted rows of `table`, or its partial rows."""
    acc = tl.zeros((E, BLOCK), ACC)
    if last_chunk > first_chunk:
        acc = add_partial_rows(acc, partial, first_chunk, last_chunk, width, column, inside, E)
    else:
        acc = add_rows(acc, weights, rows, table, stride, first, last, column, inside, E, ACC)
    return tl.sum(acc, axis=0)
