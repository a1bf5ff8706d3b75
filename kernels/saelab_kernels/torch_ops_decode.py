"""Decode, its error, and the gradients of both as operators of torch, with shapes for tracing and gradients."""

from __future__ import annotations

import torch

from saelab_kernels import decode as public_decode
from saelab_kernels import gradients as public_gradients
from saelab_kernels.buffers import Parts
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Tensor

_CODE = "Tensor values, Tensor columns, Tensor? offsets"


def _decode(
    values: Tensor,
    columns: Tensor,
    offsets: Tensor | None,
    W_dec: Tensor,
    b_dec: Tensor | None = None,
    backend: str = "",
) -> Tensor:
    code = SparseCode(values, columns, W_dec.shape[0], offsets)
    return public_decode.decode(code, W_dec, b_dec, backend or None)


def _decode_error(
    values: Tensor,
    columns: Tensor,
    offsets: Tensor | None,
    W_dec: Tensor,
    b_dec: Tensor | None,
    target: Tensor,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    code = SparseCode(values, columns, W_dec.shape[0], offsets)
    return public_decode.decode_error(code, W_dec, b_dec, target, backend or None)


def _pair_products(
    values: Tensor, columns: Tensor, offsets: Tensor | None, W_dec: Tensor, g_out: Tensor, backend: str = ""
) -> Tensor:
    code = SparseCode(values, columns, W_dec.shape[0], offsets)
    return public_gradients.pair_products(code, W_dec, g_out, backend or None)


def _code_gradients(
    values: Tensor,
    columns: Tensor,
    offsets: Tensor | None,
    x: Tensor,
    W_dec: Tensor,
    g_out: Tensor | None = None,
    g_values: Tensor | None = None,
    parts: Parts = "both",
    backend: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    code = SparseCode(values, columns, W_dec.shape[0], offsets)
    found = public_gradients.code_gradients(
        code, x, W_dec, g_out, g_values=g_values, parts=parts, backend=backend or None
    )
    return found.W_enc, found.b_enc, found.W_dec, found.values


decode = torch.library.custom_op(
    "saelab::decode",
    _decode,
    mutates_args=(),
    schema=f'({_CODE}, Tensor W_dec, Tensor? b_dec=None, str backend="") -> Tensor',
)
decode_error = torch.library.custom_op(
    "saelab::decode_error",
    _decode_error,
    mutates_args=(),
    schema=f'({_CODE}, Tensor W_dec, Tensor? b_dec, Tensor target, str backend="") -> '
    "(Tensor error, Tensor squares)",
)
pair_products = torch.library.custom_op(
    "saelab::pair_products",
    _pair_products,
    mutates_args=(),
    schema=f'({_CODE}, Tensor W_dec, Tensor g_out, str backend="") -> Tensor',
)
code_gradients = torch.library.custom_op(
    "saelab::code_gradients",
    _code_gradients,
    mutates_args=(),
    schema=f"({_CODE}, Tensor x, Tensor W_dec, Tensor? g_out=None, Tensor? g_values=None, "
    'str parts="both", str backend="") -> (Tensor dW_enc, Tensor db_enc, Tensor dW_dec, Tensor dvalues)',
)


def _rows(values, offsets):
    return values.shape[0] if offsets is None else offsets.shape[0] - 1


@decode.register_fake
def _decode_shapes(values, columns, offsets, W_dec, b_dec=None, backend=""):
    return values.new_empty(_rows(values, offsets), W_dec.shape[1])


@decode_error.register_fake
def _decode_error_shapes(values, columns, offsets, W_dec, b_dec, target, backend=""):
    error = values.new_empty(_rows(values, offsets), W_dec.shape[1])
    return error, error.new_empty(error.shape[0])


@pair_products.register_fake
def _pair_products_shapes(values, columns, offsets, W_dec, g_out, backend=""):
    return values.new_empty(values.shape)


@code_gradients.register_fake
def _code_gradients_shapes(
    values, columns, offsets, x, W_dec, g_out=None, g_values=None, parts="both", backend=""
):
    d_sae, d_out = W_dec.shape
    dW_enc = x.new_empty(d_sae, x.shape[1]).t()  # feature-major
    return dW_enc, x.new_empty(d_sae), x.new_empty(d_sae, d_out), values.new_empty(values.shape)


def _remember_decode(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.backend = inputs[-1]


def _decode_backward(ctx, g_out):
    # torch leaves trailing arguments out where they equal their defaults.
    needs_values, _, _, needs_W_dec, needs_b_dec = (*ctx.needs_input_grad, False)[:5]
    dvalues, dW_dec = _of_values_and_decoder(ctx, g_out, needs_values, needs_W_dec)
    return dvalues, None, None, dW_dec, g_out.sum(dim=0) if needs_b_dec else None, None


def _remember_error(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4], output[0])
    ctx.backend = inputs[-1]


def _error_backward(ctx, g_error, g_squares):
    needs_values, _, _, needs_W_dec, needs_b_dec, needs_target = ctx.needs_input_grad[:6]
    g_out = torch.addcmul(g_error, ctx.saved_tensors[4], g_squares.unsqueeze(1), value=2)
    dvalues, dW_dec = _of_values_and_decoder(ctx, g_out, needs_values, needs_W_dec)
    db_dec, d_target = g_out.sum(dim=0) if needs_b_dec else None, -g_out if needs_target else None
    return dvalues, None, None, dW_dec, db_dec, d_target, None


def _of_values_and_decoder(ctx, g_out, needs_values, needs_W_dec):
    values, columns, offsets, W_dec = ctx.saved_tensors[:4]
    dvalues = dW_dec = None
    g_out = g_out.contiguous()
    if needs_values:
        # Decode is linear: every stored value has a gradient, also one that is not above 0.
        dvalues = torch.ops.saelab.pair_products(values, columns, offsets, W_dec, g_out, ctx.backend)
    if needs_W_dec:
        # No encoder is differentiated here: an input of one column costs nothing.
        x = g_out.new_zeros(g_out.shape[0], 1)
        _, _, dW_dec, _ = torch.ops.saelab.code_gradients(
            values, columns, offsets, x, W_dec, g_out, None, "decoder", ctx.backend
        )
    return dvalues, dW_dec


def _no_second_derivative(ctx, *_):
    raise RuntimeError(
        "saelab: second derivatives through the gradients of a sparse code are not implemented; "
        "call backward without create_graph"
    )


decode.register_autograd(_decode_backward, setup_context=_remember_decode)
decode_error.register_autograd(_error_backward, setup_context=_remember_error)
pair_products.register_autograd(_no_second_derivative)
code_gradients.register_autograd(_no_second_derivative)
