"""`encode_select` as operators of torch: one for each rule, with shapes for tracing and gradients.

The gradient of the values reaches x, W_enc and b_enc through the kept values above 0; the selection is constant.
"""

from __future__ import annotations

from typing import Any

import torch

from saelab_kernels.code import SparseCode
from saelab_kernels.request import Selection
from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Rule, Threshold
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Tensor

_INPUTS = "Tensor x, Tensor W_enc, Tensor b_enc"
_OPTIONS = 'Tensor? scale=None, Tensor? columns=None, str backend=""'


def _top_k(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    scale: Tensor | None = None,
    columns: Tensor | None = None,
    budgets: Tensor | None = None,
    sort: bool = True,
    backend: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    found = encode_select(
        x,
        W_enc,
        b_enc,
        PerToken(k),
        scale=scale,
        columns=columns,
        budgets=budgets,
        boundary=True,
        sort=sort,
        backend=backend or None,
    )
    assert found.boundary is not None
    return found.code.values, found.code.columns, found.boundary


def _ragged(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, rule: Rule, backend: str, **options: Any
) -> tuple[SparseCode, Selection]:
    """A selection and its code without spare capacity: the size of an operator's result is known to the host."""
    found = encode_select(x, W_enc, b_enc, rule, backend=backend or None, **options)
    return found.code.trimmed(), found


def _per_batch(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: float,
    scale: Tensor | None = None,
    columns: Tensor | None = None,
    backend: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    code, found = _ragged(x, W_enc, b_enc, PerBatch(k), backend, scale=scale, columns=columns, boundary=True)
    assert code.offsets is not None and found.boundary is not None
    return code.values, code.columns, code.offsets, found.boundary


def _per_feature(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    budgets: Tensor,
    scale: Tensor | None = None,
    columns: Tensor | None = None,
    backend: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = {"budgets": budgets, "scale": scale, "columns": columns, "boundary": True}
    code, found = _ragged(x, W_enc, b_enc, PerFeature(), backend, **options)
    assert code.offsets is not None and found.boundary is not None
    return code.values, code.columns, code.offsets, found.boundary


def _threshold(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor,
    scale: Tensor | None = None,
    columns: Tensor | None = None,
    backend: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    code, _ = _ragged(x, W_enc, b_enc, Threshold(), backend, theta=theta, scale=scale, columns=columns)
    assert code.offsets is not None
    return code.values, code.columns, code.offsets


encode_top_k = torch.library.custom_op(
    "saelab::encode_top_k",
    _top_k,
    mutates_args=(),
    schema=f"({_INPUTS}, SymInt k, Tensor? scale=None, Tensor? columns=None, Tensor? budgets=None, "
    'bool sort=True, str backend="") -> (Tensor values, Tensor columns_out, Tensor boundary)',
)
encode_per_batch = torch.library.custom_op(
    "saelab::encode_per_batch",
    _per_batch,
    mutates_args=(),
    schema=f"({_INPUTS}, float k, {_OPTIONS}) -> "
    "(Tensor values, Tensor columns_out, Tensor offsets, Tensor boundary)",
)
encode_per_feature = torch.library.custom_op(
    "saelab::encode_per_feature",
    _per_feature,
    mutates_args=(),
    schema=f"({_INPUTS}, Tensor budgets, {_OPTIONS}) -> "
    "(Tensor values, Tensor columns_out, Tensor offsets, Tensor boundary)",
)
encode_threshold = torch.library.custom_op(
    "saelab::encode_threshold",
    _threshold,
    mutates_args=(),
    schema=f"({_INPUTS}, Tensor theta, {_OPTIONS}) -> (Tensor values, Tensor columns_out, Tensor offsets)",
)


@encode_top_k.register_fake
def _top_k_shapes(x, W_enc, b_enc, k, scale=None, columns=None, budgets=None, sort=True, backend=""):
    width = min(k, W_enc.shape[1] if columns is None else columns.shape[0])
    values = x.new_empty(x.shape[0], width)
    return values, torch.empty_like(values, dtype=torch.int32), x.new_empty(x.shape[0])


def _ragged_shapes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = torch.library.get_ctx().new_dynamic_size()
    offsets = x.new_empty(x.shape[0] + 1, dtype=torch.int64)
    return x.new_empty(n), x.new_empty(n, dtype=torch.int32), offsets


@encode_per_batch.register_fake
def _per_batch_shapes(x, W_enc, b_enc, k, scale=None, columns=None, backend=""):
    return *_ragged_shapes(x), x.new_empty(())


@encode_per_feature.register_fake
def _per_feature_shapes(x, W_enc, b_enc, budgets, scale=None, columns=None, backend=""):
    return *_ragged_shapes(x), x.new_empty(W_enc.shape[1] if columns is None else columns.shape[0])


@encode_threshold.register_fake
def _threshold_shapes(x, W_enc, b_enc, theta, scale=None, columns=None, backend=""):
    return _ragged_shapes(x)


def _remember(ctx, inputs, output):
    x, W_enc = inputs[:2]
    values, columns, *rest = output
    offsets = rest.pop(0) if values.ndim == 1 else None
    ctx.mark_non_differentiable(*rest)
    ctx.save_for_backward(x, W_enc, values, columns, offsets)
    ctx.n_inputs, ctx.backend = len(inputs), inputs[-1]


def _backward(ctx, g_values, *_):
    x, W_enc, values, columns, offsets = ctx.saved_tensors
    needs_x, *needs_weights = ctx.needs_input_grad[:3]
    dx = dW_enc = db_enc = None
    g_values = g_values.contiguous()
    if any(needs_weights):
        # No reconstruction is differentiated here: a decoder of one column costs nothing.
        W_dec = x.new_zeros(W_enc.shape[1], 1)
        dW_enc, db_enc, _, dz = torch.ops.saelab.code_gradients(
            values, columns, offsets, x, W_dec, None, g_values, "encoder", ctx.backend
        )
    else:
        dz = g_values.masked_fill((values > 0).logical_not(), 0)
    if needs_x:
        W = W_enc.t().contiguous()  # a copy only where W_enc is not feature-major
        dx = torch.ops.saelab.decode(dz, columns, offsets, W, None, ctx.backend)
    return dx, dW_enc, db_enc, *[None] * (ctx.n_inputs - 3)


for _op in (encode_top_k, encode_per_batch, encode_per_feature, encode_threshold):
    _op.register_autograd(_backward, setup_context=_remember)
