"""Decode and its error: one program for a row of the batch, which reads the decoder rows of its entries."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl

from saelab_kernels.backends.triton.feature_major import entry_rows
from saelab_kernels.backends.triton.launch import Tuning, on_device, readable
from saelab_kernels.backends.triton.rows import add_rows, inner_products
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Float, Tensor


@triton.jit
@no_type_check
def decode_kernel(
    values, columns, offsets, W_dec, w_stride, b_dec, target, target_stride, out, squares, entries, width, d_out,
    E: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if offsets is None:
        first = row * width
        last = first + width
    else:
        # An overflowed code holds fewer entries than its offsets say.
        first = tl.minimum(tl.load(offsets + row), entries)
        last = tl.minimum(tl.load(offsets + row + 1), entries)
    square = tl.zeros((BLOCK,), ACC)
    for start in range(0, d_out, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < d_out
        acc = tl.zeros((E, BLOCK), ACC)
        acc = add_rows(acc, values, columns, W_dec, w_stride, first, last, column, inside, E, ACC)
        made = tl.sum(acc, axis=0)
        if b_dec is not None:
            made += tl.load(b_dec + column, mask=inside, other=0).to(ACC)
        if target is not None:
            made -= tl.load(target + row * target_stride + column, mask=inside, other=0).to(ACC)
            square += made * made
        tl.store(out + row * d_out + column, made, mask=inside)
    if target is not None:
        tl.store(squares + row, tl.sum(square, axis=0))


@triton.jit
@no_type_check
def pair_products_kernel(
    columns, rows, W_dec, w_stride, g_out, g_stride, out, entries, d_out,
    E: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64) * E + tl.arange(0, E)
    row = tl.load(rows + entry, mask=entry < entries, other=-1).to(tl.int64)
    used = row >= 0
    feature = tl.load(columns + entry, mask=used, other=0).to(tl.int64)
    g = g_out + tl.where(used, row, 0) * g_stride
    found = inner_products(g, W_dec + feature * w_stride, used, d_out, E, BLOCK, ACC)
    tl.store(out + entry, tl.where(used, found, 0), mask=entry < entries)


def run_decode(
    code: SparseCode,
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"] | None,
    target: Float[Tensor, "rows d_out"] | None,
    tuning: Tuning,
) -> tuple[Float[Tensor, "rows d_out"], Float[Tensor, " rows"] | None]:
    """The reconstruction without a target; with one the error, and its square for each row.

    Does not wait for the device. Of an overflowed code the entries that are there are decoded.
    """
    rows, d_out = code.n_rows, W_dec.shape[1]
    out = W_dec.new_empty(rows, d_out)
    squares = None if target is None else W_dec.new_empty(rows)
    values, columns, W_dec = code.values.contiguous(), code.columns.contiguous(), readable(W_dec)
    target = None if target is None else readable(target)
    b_dec = None if b_dec is None else b_dec.contiguous()
    if rows == 0 or d_out == 0:
        return out, None if squares is None else squares.zero_()
    with on_device(W_dec):
        decode_kernel[(rows,)](
            values,
            columns,
            None if code.offsets is None else code.offsets.contiguous(),
            W_dec,
            W_dec.stride(0),
            b_dec,
            target,
            0 if target is None else target.stride(0),
            out,
            squares,
            values.numel(),
            values.shape[1] if code.offsets is None else 0,
            d_out,
            **tuning.constants(W_dec.dtype, d_out),
        )
    return out, squares


def run_pair_products(
    code: SparseCode,
    W_dec: Float[Tensor, "d_sae d_out"],
    g_out: Float[Tensor, "rows d_out"],
    tuning: Tuning,
) -> Float[Tensor, "*entries"]:
    """See `saelab_kernels.gradients.pair_products`. Does not wait for the device."""
    out = torch.empty_like(code.values, memory_format=torch.contiguous_format)
    entries = out.numel()
    if entries == 0:
        return out
    W_dec, g_out = readable(W_dec), readable(g_out)
    with on_device(W_dec):
        pair_products_kernel[(triton.cdiv(entries, tuning.entries),)](
            code.columns.contiguous(),
            entry_rows(code),
            W_dec,
            W_dec.stride(0),
            g_out,
            g_out.stride(0),
            out,
            entries,
            W_dec.shape[1],
            **tuning.constants(W_dec.dtype, W_dec.shape[1]),
        )
    return out
