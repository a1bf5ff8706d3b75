"""Gradients at the kept pairs: one pass over features, each with its rows of both weights."""

from __future__ import annotations

import numpy as np
import torch

from saelab_kernels.backends.cpu.compiled import sums
from saelab_kernels.backends.cpu.feature_major import entries_of
from saelab_kernels.backends.cpu.tiles import numbers
from saelab_kernels.backends.cpu.workers import run_blocks
from saelab_kernels.buffers import GradientBuffers, Gradients, GradientTerm, Parts
from saelab_kernels.shapes import Float, Tensor

BLOCK_FEATURES = 256
"""Features that a thread takes at a time; sums over all features are taken block by block, in their order."""


def feature_blocks(d_sae: int) -> int:
    """Number of blocks of features."""
    return -(-d_sae // BLOCK_FEATURES)


def code_gradients(
    term: GradientTerm,
    W_dec: Float[Tensor, "d_sae d_out"],
    buffers: GradientBuffers,
    accumulate: bool,
    parts: Parts,
) -> Gradients:
    """See `saelab_kernels.gradients.code_gradients`."""
    entries = entries_of([term])
    d_sae = W_dec.shape[0]
    d_values = torch.zeros_like(term.code.values).reshape(-1)
    rows = numbers(W_dec.contiguous())
    out = (
        numbers(buffers.W_dec) if parts != "encoder" else None,
        numbers(buffers.W_enc.t()) if parts != "decoder" else None,
        numbers(buffers.b_enc),
        np.empty_like(entries.values),
        numbers(d_values),
    )

    def block(index: int) -> None:
        first = index * BLOCK_FEATURES
        last = min(first + BLOCK_FEATURES, d_sae)
        _fill(first, last, *entries.arrays, entries.places, rows, accumulate, *out)

    run_blocks(block, feature_blocks(d_sae))
    return Gradients(buffers.W_enc, buffers.b_enc, buffers.W_dec, d_values.view(term.code.values.shape))


@sums
def gradient_rows(begin, end, rows, values, direct, g_out, x, direction, to_dec, to_enc, to_values):
    """One feature's gradients: those of its rows are added, those of its values written; returns the bias's.

    Args:
        begin, end: its entries; `rows`, `values`, `direct` and `to_values` are by entry.
        direct, g_out: see `Entries`, or None.
        direction: its decoder row.
        to_dec, to_enc: rows to add to, or None to leave out.
    """
    bias = direction.dtype.type(0)
    zero = direction.dtype.type(0)
    n = x.shape[0]
    for e in range(begin, end, 4):
        # Four entries at a time, so that each row is read once and the memory answers several requests together.
        e1, e2, e3 = min(e + 1, end - 1), min(e + 2, end - 1), min(e + 3, end - 1)
        r0, r1, r2, r3 = rows[e], rows[e1], rows[e2], rows[e3]
        v0 = values[e]
        v1 = values[e1] if e + 1 < end else zero
        v2 = values[e2] if e + 2 < end else zero
        v3 = values[e3] if e + 3 < end else zero
        z0, z1, z2, z3 = zero, zero, zero, zero
        if g_out is not None:
            g0, g1, g2, g3 = g_out[r0], g_out[r1], g_out[r2], g_out[r3]
            for c in range(direction.shape[0]):
                if to_dec is not None:
                    to_dec[c] += v0 * g0[c] + v1 * g1[c] + v2 * g2[c] + v3 * g3[c]
                z0 += g0[c] * direction[c]
                z1 += g1[c] * direction[c]
                z2 += g2[c] * direction[c]
                z3 += g3[c] * direction[c]
        if direct is not None:
            z0 += direct[e]
            z1 += direct[e1]
            z2 += direct[e2]
            z3 += direct[e3]
        z0 = z0 if v0 > 0 else zero
        z1 = z1 if v1 > 0 else zero
        z2 = z2 if v2 > 0 else zero
        z3 = z3 if v3 > 0 else zero
        if to_enc is not None:
            x0, x1, x2, x3 = x[r0 % n], x[r1 % n], x[r2 % n], x[r3 % n]
            for c in range(to_enc.shape[0]):
                to_enc[c] += z0 * x0[c] + z1 * x1[c] + z2 * x2[c] + z3 * x3[c]
            bias += z0 + z1 + z2 + z3
        if e + 3 < end:
            to_values[e + 3] = z3
        if e + 2 < end:
            to_values[e + 2] = z2
        if e + 1 < end:
            to_values[e + 1] = z1
        to_values[e] = z0
    return bias


@sums
def _fill(
    first, last, starts, rows, values, direct, g_out, x, places, W_dec, accumulate,
    to_dec, to_enc, to_bias, by_entry, to_values,
):  # fmt: skip
    """Gradients of features `first` to `last`, written or added; `to_dec` or `to_enc` None are left out."""
    for f in range(first, last):
        begin, end = starts[f], starts[f + 1]
        if to_dec is not None and not accumulate:
            to_dec[f, :] = 0
        if to_enc is not None and not accumulate:
            to_enc[f, :] = 0
        dec = None if to_dec is None else to_dec[f]
        enc = None if to_enc is None else to_enc[f]
        bias = gradient_rows(begin, end, rows, values, direct, g_out, x, W_dec[f], dec, enc, by_entry)
        if to_enc is not None:
            to_bias[f] = to_bias[f] + bias if accumulate else bias
        for e in range(begin, end):
            to_values[places[e]] = by_entry[e]
