"""Bytes that an operator cannot avoid moving, and its multiply-adds, counted by formula.

With B tokens, F features, d = d_in = d_out, n stored pairs, t features that any of them uses, float32 values and
int32 columns; every tensor is read or written once where caches could be of any size, except that rows which are
gathered count for each pair. All are lower bounds of the method: nothing for [B, F], nothing for scratch.

    code            8 n                              values and columns
    select          4 (B d + c d + c) + code         x, weights and biases of the c ranked columns; code written
    decode          code + 4 n d + 4 B d             rows of W_dec gathered; x_hat written
    decode_error    decode + 4 B d + 4 B             target read; squares written
    gradients       code + 8 n d + 4 t d + 8 F d + 4 F + 4 n
                                                     x, g_out gathered; W_dec read; gradients, dL/dvalues written
    adam            24 (2 F d + F + d) + code + 8 n d
                                                     weight and two moments read and written; x and g_out gathered
    adam, clipped   adam + code + 8 n d + 4 t d      a first pass over the pairs finds the norm

A copy that moves 24 bytes a parameter of both matrices is the optimiser's part of the bound; one encoder product
`[B, d] x [d, F]` is the other.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOAT = 4
CODE_ENTRY = 8
ADAM = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of one call."""

    batch: int
    d_in: int
    d_sae: int
    pairs: int
    """Stored pairs of the code."""
    touched: int
    """Features that any of them uses."""

    @property
    def parameters(self) -> int:
        """Entries of the four weights."""
        return 2 * self.d_sae * self.d_in + self.d_sae + self.d_in


def product_flops(batch: int, d_in: int, d_sae: int) -> int:
    """Operations of one encoder product, two a multiply-add."""
    return 2 * batch * d_in * d_sae


def matrix_traffic(d_in: int, d_sae: int) -> int:
    """Bytes of the minimal optimiser traffic of both matrices."""
    return ADAM * 2 * d_sae * d_in


def select_bytes(sizes: Sizes, columns: int | None = None) -> int:
    """Encode and select, over some columns or all."""
    n = sizes.d_sae if columns is None else columns
    return FLOAT * (sizes.batch * sizes.d_in + n * sizes.d_in + n) + CODE_ENTRY * sizes.pairs


def decode_bytes(sizes: Sizes) -> int:
    """Decode."""
    return CODE_ENTRY * sizes.pairs + FLOAT * (sizes.pairs + sizes.batch) * sizes.d_in


def decode_error_bytes(sizes: Sizes) -> int:
    """Decode, subtract the target, square."""
    return decode_bytes(sizes) + FLOAT * sizes.batch * (sizes.d_in + 1)


def gradient_bytes(sizes: Sizes) -> int:
    """Gradients of both matrices, the encoder bias and the values."""
    written = 2 * sizes.d_sae * sizes.d_in + sizes.d_sae + sizes.pairs
    return _pass_bytes(sizes) + FLOAT * (sizes.touched * sizes.d_in + written)


def adam_bytes(sizes: Sizes, *, clip: bool) -> int:
    """Gradients and Adam on all four weights, no gradient matrix."""
    norm_pass = _pass_bytes(sizes) + FLOAT * sizes.touched * sizes.d_in if clip else 0
    return ADAM * sizes.parameters + _pass_bytes(sizes) + norm_pass


def _pass_bytes(sizes: Sizes) -> int:
    return CODE_ENTRY * sizes.pairs + 2 * FLOAT * sizes.pairs * sizes.d_in
