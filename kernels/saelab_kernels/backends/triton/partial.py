"""Partial rows of the gradients of dense features: one program for each chunk of their entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import triton
import triton.language as tl

from saelab_kernels.backends.triton.feature_major import FeatureOrder
from saelab_kernels.backends.triton.features import entry_gradients
from saelab_kernels.backends.triton.launch import Tuning, on_device, sum_dtype
from saelab_kernels.backends.triton.rows import add_rows
from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class EntryGradients:
    """What the passes over features share: numbers of entries, of chunks and of features, in the type of sums."""

    dz: Float[Tensor, " nnz"]
    """In feature-major order; 0 behind the last feature. Written for dense features here, for others later."""
    partial_dec: Float[Tensor, "chunks_with_g_out d_out"]
    """No rows without `g_out`."""
    partial_enc: Float[Tensor, "chunks d_in"]
    partial_sums: Float[Tensor, "chunks two"]
    """Parts of `along` and `total`."""
    along: Float[Tensor, " d_sae"]
    """`<G_dec[i], W_dec[i]>`, written by the decoder's pass."""
    total: Float[Tensor, " d_sae"]
    """The gradient of `b_enc`, written by the decoder's pass."""


@triton.jit
@no_type_check
def partial_kernel(
    values, g_values, g_rows, x_rows, offsets, chunk_offsets, chunk_features,
    g_out, g_stride, x, x_stride, W_dec, w_stride, dz, partial_dec, partial_enc, partial_sums,
    d_sae, d_out, d_in, chunk, E: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    feature = tl.load(chunk_features + place)
    if feature < d_sae:
        first = tl.load(offsets + feature) + (place - tl.load(chunk_offsets + feature)) * chunk
        last = tl.minimum(first + chunk, tl.load(offsets + feature + 1))
        along, total = entry_gradients(
            values,
            g_rows,
            g_values,
            g_out,
            g_stride,
            W_dec + feature * w_stride,
            dz,
            first,
            last,
            d_out,
            E,
            BLOCK,
            ACC,
        )
        tl.store(partial_sums + 2 * place, along)
        tl.store(partial_sums + 2 * place + 1, total)
        tl.debug_barrier()  # dz was written by other threads of the program
        if g_out is not None:
            for start in range(0, d_out, BLOCK):
                column = start + tl.arange(0, BLOCK)
                acc = tl.zeros((E, BLOCK), ACC)
                inside = column < d_out
                acc = add_rows(acc, values, g_rows, g_out, g_stride, first, last, column, inside, E, ACC)
                tl.store(partial_dec + place * d_out + column, tl.sum(acc, axis=0), mask=inside)
        for start in range(0, d_in, BLOCK):
            column = start + tl.arange(0, BLOCK)
            acc = tl.zeros((E, BLOCK), ACC)
            inside = column < d_in
            acc = add_rows(acc, dz, x_rows, x, x_stride, first, last, column, inside, E, ACC)
            tl.store(partial_enc + place * d_in + column, tl.sum(acc, axis=0), mask=inside)


def partial_gradients(
    order: FeatureOrder, W_dec: Float[Tensor, "d_sae d_out"], tuning: Tuning
) -> EntryGradients:
    """Room for the passes over features, with the parts of the dense ones filled in."""
    chunks, d_out, d_in = order.most_chunks, W_dec.shape[1], order.x.shape[1]
    empty = W_dec.new_empty(0, dtype=sum_dtype(W_dec.dtype))
    made = EntryGradients(
        dz=empty.new_zeros(order.values.shape[0]),
        partial_dec=empty.new_empty(chunks if order.g_out is not None else 0, d_out),
        partial_enc=empty.new_empty(chunks, d_in),
        partial_sums=empty.new_empty(chunks, 2),
        along=empty.new_empty(order.d_sae),
        total=empty.new_empty(order.d_sae),
    )
    if chunks == 0:
        return made
    with on_device(W_dec):
        partial_kernel[(chunks,)](
            order.values,
            order.g_values,
            order.g_rows,
            order.x_rows,
            order.offsets,
            order.chunk_offsets,
            order.chunk_features,
            order.g_out,
            0 if order.g_out is None else order.g_out.stride(0),
            order.x,
            order.x.stride(0),
            W_dec,
            W_dec.stride(0),
            made.dz,
            made.partial_dec,
            made.partial_enc,
            made.partial_sums,
            order.d_sae,
            d_out,
            d_in,
            tuning.chunk,
            **tuning.constants(W_dec.dtype, d_in, d_out),
        )
    return made
