"""Gradients at the kept pairs: one pass over features, each with its rows of both weights."""

from __future__ import annotations

import numpy as np
import torch

from saelab_kernels.backends.cpu.compiled import sums
from saelab_kernels.backends.cpu.feature_major import Entries, entries_of
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
        numbers(d_values),
    )

    def block(index: int) -> None:
        first = index * BLOCK_FEATURES
        last = min(first + BLOCK_FEATURES, d_sae)
        _fill(first, last, *_arrays(entries), entries.places, rows, accumulate, *out)

    run_blocks(block, feature_blocks(d_sae))
    return Gradients(buffers.W_enc, buffers.b_enc, buffers.W_dec, d_values.view(term.code.values.shape))


def _arrays(entries: Entries) -> tuple[np.ndarray | None, ...]:
    """The entries as the compiled loops take them."""
    return entries.starts, entries.rows, entries.values, entries.direct, entries.g_out, entries.x


@sums
def value_gradient(e, rows, values, direct, g_out, direction):
    """dL/dvalue of entry e: 0 unless its value is above 0."""
    found = direction.dtype.type(0)
    if values[e] > 0:
        if g_out is not None:
            g = g_out[rows[e]]
            for c in range(direction.shape[0]):
                found += g[c] * direction[c]
        if direct is not None:
            found += direct[e]
    return found


@sums
def _fill(
    first,
    last,
    starts,
    rows,
    values,
    direct,
    g_out,
    x,
    places,
    W_dec,
    accumulate,
    to_dec,
    to_enc,
    to_bias,
    to_values,
):
    """Gradients of features `first` to `last`, written or added; `to_dec` or `to_enc` None are left out."""
    for f in range(first, last):
        bias = W_dec.dtype.type(0)
        if to_dec is not None and not accumulate:
            to_dec[f, :] = 0
        if to_enc is not None and not accumulate:
            to_enc[f, :] = 0
        for e in range(starts[f], starts[f + 1]):
            dz = value_gradient(e, rows, values, direct, g_out, W_dec[f])
            to_values[places[e]] = dz
            if to_dec is not None and g_out is not None:
                g, out, value = g_out[rows[e]], to_dec[f], values[e]
                for c in range(out.shape[0]):
                    out[c] += value * g[c]
            if to_enc is not None:
                inputs, enc = x[rows[e] % x.shape[0]], to_enc[f]
                for c in range(enc.shape[0]):
                    enc[c] += dz * inputs[c]
                bias += dz
        if to_enc is not None:
            to_bias[f] = to_bias[f] + bias if accumulate else bias
