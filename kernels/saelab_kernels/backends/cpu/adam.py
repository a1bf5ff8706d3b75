"""The optimiser step without a gradient matrix: each feature's gradient lives in the cache while its rows move.

With clipping, a first pass finds the norm of the gradient and a second one finds the gradient again and moves the
weights: twice the work of the kept pairs, which is small beside the encoder's product, and no memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from saelab_kernels.adam_state import AdamOptions, AdamState, Weights
from saelab_kernels.backends.cpu.compiled import sums
from saelab_kernels.backends.cpu.feature_major import Entries, entries_of
from saelab_kernels.backends.cpu.feature_rows import FeatureRows, feature_rows, found_densely
from saelab_kernels.backends.cpu.gradients import BLOCK_FEATURES, feature_blocks, gradient_rows
from saelab_kernels.backends.cpu.tiles import numbers
from saelab_kernels.backends.cpu.workers import run_blocks
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.shapes import Float, Tensor


def adam_step(
    terms: Sequence[GradientTerm],
    weights: Weights,
    state: AdamState,
    options: AdamOptions,
    lr: float | Tensor,
) -> Float[Tensor, ""]:
    """See `saelab_kernels.adam.SparseAdam.step`."""
    state.steps += 1
    scales = _Scales.at(float(state.steps), float(lr), options, weights.W_dec.dtype)
    of_some = [term for term in terms[1:] if found_densely(term)]
    entries = entries_of([term.among_all(weights.W_dec.shape[0]) for term in terms if term not in of_some])
    rows = feature_rows(of_some, weights)
    g_b_dec = _direct_bias_gradient(terms, weights)
    one_pass = options.clip is None
    norm = _pass(entries, rows, weights, state, options, scales.vector(1.0), g_b_dec, move=one_pass)
    factor = 1.0
    if options.clip is not None:
        factor = min(1.0, options.clip / (norm + 1e-6)) if math.isfinite(norm) else math.nan
        _pass(
            entries, rows, weights, state, options, scales.vector(factor), np.zeros_like(g_b_dec), move=True
        )
    b_dec, mean, square = (numbers(t.b_dec) for t in (weights, state.exp_avg, state.exp_avg_sq))
    _move(b_dec, mean, square, g_b_dec, scales.vector(factor))
    return weights.W_dec.new_tensor(norm)


class _Scales:
    """The numbers of an Adam step that are the same for all weights."""

    def __init__(self, parts: Sequence[float], dtype: np.dtype) -> None:
        self._parts, self._dtype = tuple(parts), dtype

    @classmethod
    def at(cls, step: float, lr: float, options: AdamOptions, dtype: torch.dtype) -> _Scales:
        """For the step with this number, the first one being 1."""
        corrections = 1 - options.beta1**step, math.sqrt(1 - options.beta2**step)
        parts = (
            options.beta1,
            1 - options.beta1,
            options.beta2,
            1 - options.beta2,
            lr / corrections[0],
            1 / corrections[1],
            options.eps,
        )
        return cls(parts, numbers(torch.empty(0, dtype=dtype)).dtype)

    def vector(self, factor: float) -> np.ndarray:
        """As the compiled loops take them, with the factor of the gradient in front."""
        return np.array([factor, *self._parts], self._dtype)


def _direct_bias_gradient(terms: Sequence[GradientTerm], weights: Weights) -> np.ndarray:
    """What `b_dec` gets as a part of the reconstructions."""
    total = torch.zeros_like(weights.b_dec)
    for term in terms:
        if term.adds_b_dec and term.g_out is not None:
            total += term.g_out.detach().sum(dim=0)
    return numbers(total)


def _pass(
    entries: Entries,
    rows: FeatureRows,
    weights: Weights,
    state: AdamState,
    options: AdamOptions,
    scales: np.ndarray,
    g_b_dec: np.ndarray,
    *,
    move: bool,
) -> float:
    """Go through all features, moving their weights or not; returns the norm of the gradient.

    What comes through the encoder's input is added to `g_b_dec`.
    """
    d_sae, d_out = weights.W_dec.shape
    blocks = feature_blocks(d_sae)
    squares = np.zeros(blocks, np.float64)
    through = np.zeros((blocks, d_out if options.input_bias else 0), numbers(weights.b_dec).dtype)
    arrays = [
        numbers(part)
        for group in (weights, state.exp_avg, state.exp_avg_sq)
        for part in (group.W_dec, group.W_enc.t(), group.b_enc)
    ]
    by_entry = np.empty_like(entries.values)

    def block(index: int) -> None:
        first = index * BLOCK_FEATURES
        last = min(first + BLOCK_FEATURES, d_sae)
        squares[index] = _features(
            first,
            last,
            *entries.arrays,
            by_entry,
            *rows,
            *arrays,
            scales,
            options.unit_rows,
            move,
            through[index],
        )

    run_blocks(block, blocks)
    if options.input_bias:
        g_b_dec -= through.sum(axis=0)
    return math.sqrt(squares.sum() + float(np.square(g_b_dec, dtype=np.float64).sum()))


@sums
def _move(weight, mean, square, gradient, scales):
    """Adam on one row: the update of torch's, the same up to rounding."""
    factor, beta1, rest1, beta2, rest2, rate, unbias, eps = scales
    for c in range(weight.shape[0]):
        g = factor * gradient[c]
        mean[c] = beta1 * mean[c] + rest1 * g
        square[c] = beta2 * square[c] + rest2 * g * g
        weight[c] -= rate * mean[c] / (np.sqrt(square[c]) * unbias + eps)


@sums
def _features(
    first, last, starts, rows, values, direct, g_out, x, by_entry, row_of, rows_dec, rows_enc, rows_b,
    W_dec, W_enc, b_enc, mean_dec, mean_enc, mean_b, square_dec, square_enc, square_b,
    scales, unit_rows, move, through,
):  # fmt: skip
    """The gradients of features `first` to `last`; moves their weights if `move`; returns the sum of squares.

    `through [d_in]` gets the sum of `b_enc`'s gradient times the encoder's row, where it has a length.
    """
    d_out, d_in = W_dec.shape[1], W_enc.shape[1]
    zero = W_dec.dtype.type(0)
    g_dec, g_enc, g_bias = np.empty(d_out, W_dec.dtype), np.empty(d_in, W_dec.dtype), np.empty(1, W_dec.dtype)
    total = 0.0
    for f in range(first, last):
        begin, end = starts[f], starts[f + 1]
        extra = -1 if row_of is None else row_of[f]
        touched = begin < end or extra >= 0
        if not touched and not move:
            continue
        g_dec[:] = 0
        g_enc[:] = 0
        direction = W_dec[f]
        bias = gradient_rows(begin, end, rows, values, direct, g_out, x, direction, g_dec, g_enc, by_entry)
        if extra >= 0 and row_of is not None:
            for c in range(d_out):
                g_dec[c] += rows_dec[extra, c]
            for c in range(d_in):
                g_enc[c] += rows_enc[extra, c]
            bias += rows_b[extra]
        if unit_rows and touched:
            along = zero
            for c in range(d_out):
                along += g_dec[c] * direction[c]
            for c in range(d_out):
                g_dec[c] -= along * direction[c]
        if touched:
            part = bias * bias
            for c in range(d_out):
                part += g_dec[c] * g_dec[c]
            for c in range(d_in):
                part += g_enc[c] * g_enc[c]
            total += part
            encoder = W_enc[f]
            for c in range(through.shape[0]):
                through[c] += bias * encoder[c]
        if move:
            g_bias[0] = bias
            _move(direction, mean_dec[f], square_dec[f], g_dec, scales)
            _move(W_enc[f], mean_enc[f], square_enc[f], g_enc, scales)
            _move(b_enc[f : f + 1], mean_b[f : f + 1], square_b[f : f + 1], g_bias, scales)
            if unit_rows:
                length = zero
                for c in range(d_out):
                    length += direction[c] * direction[c]
                length = 1 / max(np.sqrt(length), W_dec.dtype.type(1e-12))
                for c in range(d_out):
                    direction[c] *= length
    return total
