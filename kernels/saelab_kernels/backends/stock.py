"""Backend "torch": stock torch operators, in tiles, on any device."""

from __future__ import annotations

import torch
from torch.nn.functional import embedding_bag

from saelab_kernels.backends.stock_gradients import stock_gradients
from saelab_kernels.backends.stock_running import select_ragged
from saelab_kernels.backends.stock_topk import select_per_token
from saelab_kernels.code import SparseCode
from saelab_kernels.dispatch import Backend
from saelab_kernels.gradients import GradientBuffers, Gradients
from saelab_kernels.rules import PerToken
from saelab_kernels.select import Selection, SelectRequest
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
        exact = code.trimmed()
        if exact.values.numel() == 0:
            out = W_dec.new_zeros(code.n_rows, W_dec.shape[1])
        elif exact.offsets is None:
            out = embedding_bag(exact.columns, W_dec, per_sample_weights=exact.values, mode="sum")
        else:
            out = embedding_bag(
                exact.columns,
                W_dec,
                exact.offsets.to(torch.int32) if exact.values.numel() < 2**31 else exact.offsets,
                per_sample_weights=exact.values,
                mode="sum",
                include_last_offset=True,
            )
        return out if b_dec is None else out.add_(b_dec)

    def code_gradients(
        self,
        code: SparseCode,
        x: Tensor,
        W_dec: Tensor,
        g_out: Tensor | None,
        g_values: Tensor | None,
        buffers: GradientBuffers,
        accumulate: bool,
    ) -> Gradients:
        return stock_gradients(code, x, W_dec, g_out, g_values, buffers, accumulate)


BACKEND: Backend = _Stock()
