"""Backend "torch": stock torch operators, in tiles, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import embedding_bag

from saelab_kernels.adam_state import AdamOptions, AdamState, Weights
from saelab_kernels.backends.stock_adam import buffered_adam_step
from saelab_kernels.backends.stock_dense import decode_by_rows, dense_decode
from saelab_kernels.backends.stock_gradients import stock_gradients, stock_pair_products
from saelab_kernels.backends.stock_running import select_ragged
from saelab_kernels.backends.stock_topk import select_per_token
from saelab_kernels.buffers import GradientBuffers, Gradients, GradientTerm, Parts
from saelab_kernels.code import SparseCode
from saelab_kernels.contract import Backend
from saelab_kernels.request import Selection, SelectRequest
from saelab_kernels.rules import PerToken
from saelab_kernels.shapes import Float, Tensor


class _Stock:
    """No tensor of `rows * d_sae` or `nnz * d` elements exists at any time."""

    def encode_select(self, request: SelectRequest) -> Selection:
        if isinstance(request.rule, PerToken):
            return select_per_token(request, request.rule)
        return select_ragged(request)

    def decode(
        self, code: SparseCode, W_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"] | None
    ) -> Float[Tensor, "rows d_out"]:
        out = decode_by_rows(code.trimmed(), W_dec, _sparse_decode, dense_decode)
        return out if b_dec is None else out.add_(b_dec)

    def decode_error(
        self, code: SparseCode, W_dec: Tensor, b_dec: Tensor | None, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        error = self.decode(code, W_dec, b_dec).sub_(target)
        return error, torch.linalg.vector_norm(error, dim=1).square_()

    def pair_products(self, code: SparseCode, W_dec: Tensor, g_out: Tensor) -> Tensor:
        return stock_pair_products(code, W_dec, g_out)

    def code_gradients(
        self, term: GradientTerm, W_dec: Tensor, buffers: GradientBuffers, accumulate: bool, parts: Parts
    ) -> Gradients:
        return stock_gradients(term, W_dec, buffers, accumulate, parts)

    def adam_step(
        self,
        terms: Sequence[GradientTerm],
        weights: Weights,
        state: AdamState,
        options: AdamOptions,
        lr: float | Tensor,
    ) -> Tensor:
        return buffered_adam_step(self, terms, weights, state, options, lr)


def _sparse_decode(exact: SparseCode, W_dec: Tensor) -> Tensor:
    """Sums of decoder rows; only the entries' rows are read."""
    if exact.values.numel() == 0:
        return W_dec.new_zeros(exact.n_rows, W_dec.shape[1])
    if exact.offsets is None:
        return embedding_bag(exact.columns, W_dec, per_sample_weights=exact.values, mode="sum")
    return embedding_bag(
        exact.columns,
        W_dec,
        exact.offsets.to(torch.int32) if exact.values.numel() < 2**31 else exact.offsets,
        per_sample_weights=exact.values,
        mode="sum",
        include_last_offset=True,
    )


BACKEND: Backend = _Stock()
