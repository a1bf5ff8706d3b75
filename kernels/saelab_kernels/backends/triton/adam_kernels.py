"""The passes over features of the optimiser step: rows of gradients that go into the weights without being stored."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from saelab_kernels.backends.triton.features import feature_gradient, feature_sums


@triton.jit
@no_type_check
def stream(table, at, mask, ACC: tl.constexpr):
    """What passes once; it should not drive the rows of x and g_out out of the cache."""
    return tl.load(table + at, mask=mask, other=0, eviction_policy="evict_first").to(ACC)


@triton.jit
@no_type_check
def moved(
    weight, m, v, mean, square, at, mask, gradient, schedule,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The weights after Adam's step; moments `m` and `v`, changed, go to `at`. `schedule`: see `adam._schedule`."""
    rate = tl.load(schedule)
    scale = tl.load(schedule + 1)
    gradient = gradient * tl.load(schedule + 2)
    # Constants of the type of sums: a Python number would be rounded to float32.
    m = tl.full((1,), BETA1, ACC) * m + tl.full((1,), 1 - BETA1, ACC) * gradient
    v = tl.full((1,), BETA2, ACC) * v + tl.full((1,), 1 - BETA2, ACC) * gradient * gradient
    tl.store(mean + at, m, mask=mask, eviction_policy="evict_first")
    tl.store(square + at, v, mask=mask, eviction_policy="evict_first")
    return weight - rate * m / (tl.sqrt(v) * scale + tl.full((1,), EPS, ACC))


@triton.jit
@no_type_check
def decoder_kernel(
    values, g_values, g_rows, offsets, chunk_offsets, g_out, g_stride, dz, partial_dec, partial_sums, along, total,
    W_dec, mean, square, schedule, squares, d_out,
    FIRST: tl.constexpr, UPDATE: tl.constexpr, UNIT_ROWS: tl.constexpr,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr,
    E: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One feature of the decoder.

    FIRST: finds the gradients of the entries and the square of the row's gradient. UPDATE: moves the row.
    """
    feature = tl.program_id(0).to(tl.int64)
    first = tl.load(offsets + feature)
    last = tl.load(offsets + feature + 1)
    first_chunk = tl.load(chunk_offsets + feature)
    last_chunk = tl.load(chunk_offsets + feature + 1)
    if FIRST:
        tangent, bias = feature_sums(
            values, g_rows, g_values, g_out, g_stride, W_dec + feature * d_out, dz, partial_sums,
            first, last, first_chunk, last_chunk, d_out, E, BLOCK, ACC,
        )  # fmt: skip
        tl.store(along + feature, tangent)
        tl.store(total + feature, bias)
        tl.debug_barrier()  # all threads have read the row of weights before any changes it
    else:
        tangent = tl.load(along + feature)
    found_square = tl.zeros((BLOCK,), ACC)
    length_square = tl.zeros((BLOCK,), ACC)
    for start in range(0, d_out, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < d_out
        at = feature * d_out + column
        weight = tl.load(W_dec + at, mask=inside, other=0).to(ACC)
        if UPDATE:  # loaded first, so that they are under way while the gradient's rows are looked up
            m = stream(mean, at, inside, ACC)
            v = stream(square, at, inside, ACC)
        gradient = tl.zeros((BLOCK,), ACC)
        if g_out is not None:
            gradient = feature_gradient(
                values, g_rows, g_out, g_stride, partial_dec, first, last, first_chunk, last_chunk,
                d_out, column, inside, E, BLOCK, ACC,
            )  # fmt: skip
            if UNIT_ROWS:
                gradient -= tangent * weight
        found_square += gradient * gradient
        if UPDATE:
            weight = moved(weight, m, v, mean, square, at, inside, gradient, schedule, BETA1, BETA2, EPS, ACC)
            weight = weight.to(W_dec.dtype.element_ty)
            tl.store(W_dec + at, weight, mask=inside)
            length_square += tl.where(inside, weight.to(ACC) * weight.to(ACC), 0)
    if FIRST:
        tl.store(squares + feature, tl.sum(found_square, axis=0))
    if UPDATE and UNIT_ROWS:
        length = tl.sqrt(tl.sum(length_square, axis=0) + tl.zeros((1,), ACC))
        length = tl.maximum(length, tl.full((1,), 1e-12, ACC))
        tl.debug_barrier()  # other threads of the program may read what these wrote
        for start in range(0, d_out, BLOCK):
            column = start + tl.arange(0, BLOCK)
            at = W_dec + feature * d_out + column
            tl.store(at, tl.load(at, mask=column < d_out, other=0).to(ACC) / length, mask=column < d_out)


@triton.jit
@no_type_check
def encoder_kernel(
    x_rows, offsets, chunk_offsets, x, x_stride, dz, partial_enc, total,
    W_enc, mean, square, b_enc, bias_mean, bias_square, schedule, squares, through, d_sae, d_in, features,
    FIRST: tl.constexpr, UPDATE: tl.constexpr, BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr,
    E: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """`features` features of the encoder, one after the other.

    FIRST: finds the squares of their gradients. UPDATE: moves their rows and biases. `through`, where given, gets
    their part of `W_enc @ total`, with the weights before the step.
    """
    begin = tl.program_id(0).to(tl.int64) * features
    end = tl.minimum(begin + features, d_sae)
    found_square = tl.zeros((BLOCK,), ACC)
    for start in range(0, d_in, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < d_in
        product = tl.zeros((BLOCK,), ACC)
        for feature in range(begin, end):
            first = tl.load(offsets + feature)
            last = tl.load(offsets + feature + 1)
            bias = tl.load(total + feature)
            at = feature * d_in + column
            if UPDATE:
                weight = stream(W_enc, at, inside, ACC)
                m = stream(mean, at, inside, ACC)
                v = stream(square, at, inside, ACC)
            elif through is not None:  # without entries the bias has no gradient
                weight = stream(W_enc, at, column < tl.where(last > first, d_in, 0), ACC)
            gradient = feature_gradient(
                dz, x_rows, x, x_stride, partial_enc, first, last,
                tl.load(chunk_offsets + feature), tl.load(chunk_offsets + feature + 1),
                d_in, column, inside, E, BLOCK, ACC,
            )  # fmt: skip
            found_square += gradient * gradient
            if through is not None:
                product += bias * weight
            if UPDATE:
                weight = moved(
                    weight, m, v, mean, square, at, inside, gradient, schedule, BETA1, BETA2, EPS, ACC
                )
                tl.store(W_enc + at, weight, mask=inside, eviction_policy="evict_first")
        if through is not None:
            tl.store(through + tl.program_id(0).to(tl.int64) * d_in + column, product, mask=inside)
    if FIRST:
        tl.store(squares + tl.program_id(0), tl.sum(found_square, axis=0))
    if UPDATE:
        for start in range(begin, end, E):
            feature = start + tl.arange(0, E)
            inside = feature < end
            bias = tl.load(total + feature, mask=inside, other=0)
            weight = tl.load(b_enc + feature, mask=inside, other=0).to(ACC)
            m = stream(bias_mean, feature, inside, ACC)
            v = stream(bias_square, feature, inside, ACC)
            weight = moved(
                weight, m, v, bias_mean, bias_square, feature, inside, bias, schedule, BETA1, BETA2, EPS, ACC
            )
            tl.store(b_enc + feature, weight, mask=inside)
