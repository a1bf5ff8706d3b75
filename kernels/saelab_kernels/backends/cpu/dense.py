"""Codes of which a large share is active, as dense matrices: filled by compiled loops, multiplied by torch."""

from __future__ import annotations

import numpy as np
import torch

from saelab_kernels.backends.cpu.compiled import loop
from saelab_kernels.backends.cpu.tiles import numbers, workspace
from saelab_kernels.backends.cpu.workers import run_blocks
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Float, Tensor

BLOCK_ROWS = 128
"""Rows that a thread fills at a time, and of every product of `decode_wide`: a row's bits must not depend on others."""


def dense(code: SparseCode) -> Float[Tensor, "rows d_sae"]:
    """The whole matrix of a code."""
    exact = code.trimmed()
    out = exact.values.new_empty(code.shape)
    arrays, matrix = _arrays(exact), numbers(out)

    def block(index: int) -> None:
        start = index * BLOCK_ROWS
        stop = min(start + BLOCK_ROWS, code.n_rows)
        _fill_rows(*arrays, start, stop, matrix[start:])

    run_blocks(block, -(-code.n_rows // BLOCK_ROWS))
    return out


def decode_wide(exact: SparseCode, W_dec: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, "rows d_out"]:
    """`exact @ W_dec` of a code without spare capacity; a row is the same bits in any batch."""
    out = W_dec.new_empty(exact.n_rows, W_dec.shape[1])
    arrays, rows = _arrays(exact), W_dec.detach()

    def block(index: int) -> None:
        start = index * BLOCK_ROWS
        stop = min(start + BLOCK_ROWS, exact.n_rows)
        tile = workspace("wide", (BLOCK_ROWS, exact.d_sae), W_dec.dtype)
        product = workspace("wide product", (BLOCK_ROWS, W_dec.shape[1]), W_dec.dtype)
        _fill_rows(*arrays, start, stop, numbers(tile))
        tile[stop - start :].zero_()
        torch.mm(tile, rows, out=product)
        out[start:stop].copy_(product[: stop - start])

    run_blocks(block, -(-exact.n_rows // BLOCK_ROWS))
    return out


def _arrays(exact: SparseCode) -> tuple[np.ndarray | int | None, ...]:
    """Values, columns, and row offsets or the width of every row."""
    flat = numbers(exact.values.reshape(-1)), numbers(exact.columns.reshape(-1))
    if exact.offsets is None:
        return *flat, None, exact.values.shape[1]
    return *flat, numbers(exact.offsets), 0


@loop
def _fill_rows(values, columns, offsets, width, first, last, matrix):
    """Writes rows `first` to `last` to the beginning of `matrix`; values are added, since padding repeats columns."""
    for r in range(first, last):
        out = matrix[r - first]
        out[:] = 0
        begin, end = r * width, (r + 1) * width
        if offsets is not None:
            begin, end = offsets[r], offsets[r + 1]
        for e in range(begin, end):
            out[columns[e]] += values[e]
