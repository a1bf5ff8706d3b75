"""Decode, with the error and its square in the same pass over a row; and products at given pairs."""

from __future__ import annotations

import numpy as np

from saelab_kernels.backends.cpu.compiled import sums
from saelab_kernels.backends.cpu.tiles import numbers
from saelab_kernels.backends.cpu.workers import run_blocks
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Float, Tensor

BLOCK_ROWS = 64
"""Rows that a thread takes at a time."""


def decode(
    code: SparseCode, W_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"] | None
) -> Float[Tensor, "rows d_out"]:
    """See `saelab_kernels.decode.decode`."""
    return _decode(code, W_dec, b_dec, None)[0]


def decode_error(
    code: SparseCode,
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"] | None,
    target: Float[Tensor, "rows d_out"],
) -> tuple[Float[Tensor, "rows d_out"], Float[Tensor, " rows"]]:
    """See `saelab_kernels.decode.decode_error`."""
    return _decode(code, W_dec, b_dec, target)


def pair_products(
    code: SparseCode, W_dec: Float[Tensor, "d_sae d_out"], g_out: Float[Tensor, "rows d_out"]
) -> Float[Tensor, "*entries"]:
    """See `saelab_kernels.gradients.pair_products`."""
    exact = code.trimmed()
    products = code.values.new_zeros(code.values.numel())
    arrays = (numbers(exact.columns.reshape(-1)), *_starts(exact))
    out, rows, g = numbers(products), numbers(W_dec.contiguous()), numbers(g_out.contiguous())

    def block(index: int) -> None:
        start = index * BLOCK_ROWS
        _multiply_rows(*arrays, start, min(start + BLOCK_ROWS, code.n_rows), rows, g, out)

    run_blocks(block, -(-code.n_rows // BLOCK_ROWS))
    return products.view(code.values.shape)


def _decode(
    code: SparseCode, W_dec: Tensor, b_dec: Tensor | None, target: Tensor | None
) -> tuple[Tensor, Tensor]:
    exact = code.trimmed()
    out = W_dec.new_empty(code.n_rows, W_dec.shape[1])
    squares = W_dec.new_empty(code.n_rows if target is not None else 0)
    bias = W_dec.new_zeros(W_dec.shape[1]) if b_dec is None else b_dec
    arrays = (
        numbers(exact.values.reshape(-1)),
        numbers(exact.columns.reshape(-1)),
        *_starts(exact),
    )
    rest = (numbers(W_dec.contiguous()), numbers(bias.contiguous()))
    wanted = None if target is None else numbers(target.contiguous())
    results = (numbers(out), numbers(squares))

    def block(index: int) -> None:
        start = index * BLOCK_ROWS
        _decode_rows(*arrays, start, min(start + BLOCK_ROWS, code.n_rows), *rest, wanted, *results)

    run_blocks(block, -(-code.n_rows // BLOCK_ROWS))
    return out, squares


def _starts(exact: SparseCode) -> tuple[np.ndarray | None, int]:
    """Row offsets and 0, or None and the width of every row."""
    if exact.offsets is None:
        return None, exact.values.shape[1]
    return numbers(exact.offsets), 0


@sums
def _decode_rows(values, columns, offsets, width, first, last, W_dec, bias, target, out, squares):
    """Rows `first` to `last` of `code @ W_dec + bias`, less the target where it is not None."""
    d = W_dec.shape[1]
    for r in range(first, last):
        x_hat = out[r]
        for c in range(d):
            x_hat[c] = bias[c]
        begin, end = r * width, (r + 1) * width
        if offsets is not None:
            begin, end = offsets[r], offsets[r + 1]
        whole = begin + (end - begin) // 4 * 4
        for e in range(begin, whole, 4):
            # Four rows at a time: the memory answers several requests as fast as one.
            v0, v1, v2, v3 = values[e], values[e + 1], values[e + 2], values[e + 3]
            d0, d1 = W_dec[columns[e]], W_dec[columns[e + 1]]
            d2, d3 = W_dec[columns[e + 2]], W_dec[columns[e + 3]]
            for c in range(d):
                x_hat[c] += v0 * d0[c] + v1 * d1[c] + v2 * d2[c] + v3 * d3[c]
        for e in range(whole, end):
            value, direction = values[e], W_dec[columns[e]]
            for c in range(d):
                x_hat[c] += value * direction[c]
        if target is not None:
            wanted = target[r]
            square = x_hat.dtype.type(0)
            for c in range(d):
                x_hat[c] -= wanted[c]
                square += x_hat[c] * x_hat[c]
            squares[r] = square


@sums
def _multiply_rows(columns, offsets, width, first, last, W_dec, g_out, out):
    """`<g_out[row], W_dec[column]>` at every entry of rows `first` to `last`."""
    d = W_dec.shape[1]
    for r in range(first, last):
        g = g_out[r]
        begin, end = r * width, (r + 1) * width
        if offsets is not None:
            begin, end = offsets[r], offsets[r + 1]
        for e in range(begin, end):
            direction = W_dec[columns[e]]
            product = g.dtype.type(0)
            for c in range(d):
                product += g[c] * direction[c]
            out[e] = product
