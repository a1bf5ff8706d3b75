"""Backend "cpu": loops compiled by numba around matrix products in tiles; needs no compiler on the user's machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saelab_kernels.adam_state import AdamOptions, AdamState, Weights
from saelab_kernels.backends.cpu.adam import adam_step
from saelab_kernels.backends.cpu.collected import select_per_batch, select_threshold
from saelab_kernels.backends.cpu.decode import decode, decode_error, pair_products
from saelab_kernels.backends.cpu.dense import decode_wide
from saelab_kernels.backends.cpu.gradients import code_gradients
from saelab_kernels.backends.cpu.per_feature import select_per_feature
from saelab_kernels.backends.cpu.per_token import select_per_token, select_scored_per_token
from saelab_kernels.backends.stock_adam import buffered_adam_step
from saelab_kernels.backends.stock_dense import decode_by_rows, dense_rows, is_dense
from saelab_kernels.backends.stock_gradients import stock_gradients
from saelab_kernels.backends.stock_running import select_ragged
from saelab_kernels.buffers import GradientBuffers, Gradients, GradientTerm, Parts
from saelab_kernels.code import SparseCode
from saelab_kernels.contract import Backend
from saelab_kernels.request import Selection, SelectRequest
from saelab_kernels.rules import PerBatch, PerFeature, PerToken
from saelab_kernels.shapes import Tensor


class _Cpu:
    """float32 and float64. No tensor of `rows * d_sae` or `nnz * d` elements exists; AuxK's have 8 numbers an entry.

    Args:
        halves: Select by products in bfloat16, to the float32 result, where the processor is fast at them.
    """

    def __init__(self, halves: bool) -> None:
        self._halves = halves

    def encode_select(self, request: SelectRequest) -> Selection:
        rule = request.rule
        plain = request.scale is None and request.attribution is None
        if isinstance(rule, PerToken):
            select = select_per_token if plain else select_scored_per_token
            return select(request, rule, self._halves)
        if not plain:
            return select_ragged(request)
        if isinstance(rule, PerBatch):
            return select_per_batch(request, rule)
        return select_per_feature(request) if isinstance(rule, PerFeature) else select_threshold(request)

    def decode(self, code: SparseCode, W_dec: Tensor, b_dec: Tensor | None) -> Tensor:
        exact = code.trimmed()
        if dense_rows(exact) is None:
            return decode(exact, W_dec, b_dec)
        x_hat = decode_by_rows(exact, W_dec, lambda code, rows: decode(code, rows, None), decode_wide)
        return x_hat if b_dec is None else x_hat.add_(b_dec)

    def decode_error(
        self, code: SparseCode, W_dec: Tensor, b_dec: Tensor | None, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        exact = code.trimmed()
        if dense_rows(exact) is None:
            return decode_error(exact, W_dec, b_dec, target)
        error = self.decode(exact, W_dec, b_dec).sub_(target)
        return error, torch.linalg.vector_norm(error, dim=1).square_()

    def pair_products(self, code: SparseCode, W_dec: Tensor, g_out: Tensor) -> Tensor:
        return pair_products(code, W_dec, g_out)

    def code_gradients(
        self, term: GradientTerm, W_dec: Tensor, buffers: GradientBuffers, accumulate: bool, parts: Parts
    ) -> Gradients:
        if is_dense(term.code):
            return stock_gradients(term, W_dec, buffers, accumulate, parts)
        return code_gradients(term, W_dec, buffers, accumulate, parts)

    def adam_step(
        self,
        terms: Sequence[GradientTerm],
        weights: Weights,
        state: AdamState,
        options: AdamOptions,
        lr: float | Tensor,
    ) -> Tensor:
        if any(is_dense(term.code) and term.features is None for term in terms):
            return buffered_adam_step(self, terms, weights, state, options, lr)
        return adam_step(terms, weights, state, options, lr)


BACKEND: Backend = _Cpu(halves=True)
FLOAT32: Backend = _Cpu(halves=False)
