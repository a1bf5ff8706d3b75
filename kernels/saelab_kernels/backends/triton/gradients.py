"""Gradients of decoder and encoder in two passes over features, deterministic: one program for a feature in each."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl

from saelab_kernels.backends.triton.feature_major import FeatureOrder, order_by_feature
from saelab_kernels.backends.triton.features import feature_gradient, feature_sums
from saelab_kernels.backends.triton.launch import Tuning, on_device, readable
from saelab_kernels.backends.triton.partial import EntryGradients, partial_gradients
from saelab_kernels.buffers import GradientBuffers, Gradients, GradientTerm, Parts
from saelab_kernels.shapes import Float, Tensor


@triton.jit
@no_type_check
def decoder_gradient_kernel(
    values, g_values, g_rows, offsets, chunk_offsets, g_out, g_stride, W_dec, w_stride,
    dz, partial_dec, partial_sums, total, gradient, d_out,
    ACCUMULATE: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    feature = tl.program_id(0).to(tl.int64)
    first = tl.load(offsets + feature)
    last = tl.load(offsets + feature + 1)
    first_chunk = tl.load(chunk_offsets + feature)
    last_chunk = tl.load(chunk_offsets + feature + 1)
    _, bias = feature_sums(
        values, g_rows, g_values, g_out, g_stride, W_dec + feature * w_stride, dz, partial_sums,
        first, last, first_chunk, last_chunk, d_out, E, BLOCK, ACC,
    )  # fmt: skip
    tl.store(total + feature, bias)
    if gradient is not None:
        for start in range(0, d_out, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < d_out
            found = tl.zeros((BLOCK,), ACC)
            if g_out is not None:
                found = feature_gradient(
                    values, g_rows, g_out, g_stride, partial_dec, first, last, first_chunk, last_chunk,
                    d_out, column, inside, E, BLOCK, ACC,
                )  # fmt: skip
            at = gradient + feature * d_out + column
            if ACCUMULATE:
                found += tl.load(at, mask=inside, other=0).to(ACC)
            tl.store(at, found, mask=inside)


@triton.jit
@no_type_check
def encoder_gradient_kernel(
    x_rows, offsets, chunk_offsets, x, x_stride, dz, partial_enc, total, gradient, bias_gradient, d_in,
    ACCUMULATE: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    feature = tl.program_id(0).to(tl.int64)
    first = tl.load(offsets + feature)
    last = tl.load(offsets + feature + 1)
    first_chunk = tl.load(chunk_offsets + feature)
    last_chunk = tl.load(chunk_offsets + feature + 1)
    for start in range(0, d_in, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < d_in
        found = feature_gradient(
            dz, x_rows, x, x_stride, partial_enc, first, last, first_chunk, last_chunk,
            d_in, column, inside, E, BLOCK, ACC,
        )  # fmt: skip
        at = gradient + feature * d_in + column
        if ACCUMULATE:
            found += tl.load(at, mask=inside, other=0).to(ACC)
        tl.store(at, found, mask=inside)
    bias = tl.load(total + feature)
    if ACCUMULATE:
        bias += tl.load(bias_gradient + feature).to(ACC)
    tl.store(bias_gradient + feature, bias)


def run_code_gradients(
    term: GradientTerm,
    W_dec: Float[Tensor, "d_sae d_out"],
    buffers: GradientBuffers,
    accumulate: bool,
    parts: Parts,
    tuning: Tuning,
) -> Gradients:
    """See `saelab_kernels.gradients`. Does not wait for the device; the same bits for the same arguments.

    Temporary memory: some tens of bytes an entry, and `2 nnz / (chunk + 1)` partial rows of `d_in + d_out` sums,
    the most that dense features can need.
    """
    W_dec = readable(W_dec)
    order = order_by_feature([term], tuning.chunk)
    found = partial_gradients(order, W_dec, tuning)
    with on_device(W_dec):
        if order.d_sae:
            _decoder(order, found, W_dec, None if parts == "encoder" else buffers.W_dec, accumulate, tuning)
            if parts != "decoder":
                _encoder(order, found, buffers, accumulate, tuning)
    values = torch.empty_like(term.code.values, memory_format=torch.contiguous_format)
    values.view(-1).scatter_(0, order.order, found.dz.to(values.dtype))
    return Gradients(buffers.W_enc, buffers.b_enc, buffers.W_dec, values)


def _decoder(
    order: FeatureOrder,
    found: EntryGradients,
    W_dec: Tensor,
    gradient: Tensor | None,
    accumulate: bool,
    tuning: Tuning,
) -> None:
    """Writes `found.dz`, `found.total` and, where wanted, the gradient of `W_dec`."""
    decoder_gradient_kernel[(order.d_sae,)](
        order.values,
        order.g_values,
        order.g_rows,
        order.offsets,
        order.chunk_offsets,
        order.g_out,
        0 if order.g_out is None else order.g_out.stride(0),
        W_dec,
        W_dec.stride(0),
        found.dz,
        found.partial_dec,
        found.partial_sums,
        found.total,
        gradient,
        W_dec.shape[1],
        ACCUMULATE=accumulate,
        **tuning.constants(W_dec.dtype, W_dec.shape[1]),
    )


def _encoder(
    order: FeatureOrder, found: EntryGradients, buffers: GradientBuffers, accumulate: bool, tuning: Tuning
) -> None:
    """Writes the gradients of `W_enc` and `b_enc`."""
    encoder_gradient_kernel[(order.d_sae,)](
        order.x_rows,
        order.offsets,
        order.chunk_offsets,
        order.x,
        order.x.stride(0),
        found.dz,
        found.partial_enc,
        found.total,
        buffers.W_enc,
        buffers.b_enc,
        order.x.shape[1],
        ACCUMULATE=accumulate,
        **tuning.constants(order.x.dtype, order.x.shape[1]),
    )
