"""Device functions over rows of tables: weighted sums of rows, and inner products of rows.

Rows are read in parts of `BLOCK` columns, `E` rows at a time. Sums are kept apart for each of the `E` places until
the end, in a fixed order, so that the same entries always give the same bits. `ACC` is the type of the sums.

`no_type_check` keeps checkers of annotations from wrapping what Triton must read itself.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def add_rows(
    acc, weights, rows, table, stride, first, last, column, inside, E: tl.constexpr, ACC: tl.constexpr
):
    """`acc [E, BLOCK]` plus `weights[j] * table[rows[j], column]` for the entries j in `[first, last)`."""
    for start in range(first, last, E):
        entry = start + tl.arange(0, E)
        used = entry < last
        row = tl.load(rows + entry, mask=used, other=0).to(tl.int64)
        weight = tl.load(weights + entry, mask=used, other=0).to(ACC)
        at = row[:, None] * stride + column[None, :]
        part = tl.load(table + at, mask=used[:, None] & inside[None, :], other=0).to(ACC)
        acc += weight[:, None] * part
    return acc


@triton.jit
@no_type_check
def add_partial_rows(acc, partial, first, last, width, column, inside, E: tl.constexpr):
    """`acc [E, BLOCK]` plus rows `first` to `last` of a contiguous table `[*, width]`."""
    for start in range(first, last, E):
        row = (start + tl.arange(0, E)).to(tl.int64)
        at = row[:, None] * width + column[None, :]
        acc += tl.load(partial + at, mask=(row < last)[:, None] & inside[None, :], other=0)
    return acc


@triton.jit
@no_type_check
def inner_products(a, b, used, width, E: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """`<a[e], b[e]>` for pointers `a [E]` and `b [E]`, or `b [1]`, to rows of `width` numbers; 0 where not `used`."""
    acc = tl.zeros((E, BLOCK), ACC)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = used[:, None] & (column < width)[None, :]
        left = tl.load(a[:, None] + column[None, :], mask=mask, other=0).to(ACC)
        right = tl.load(b[:, None] + column[None, :], mask=(column < width)[None, :], other=0).to(ACC)
        acc += left * right
    return tl.sum(acc, axis=1)
