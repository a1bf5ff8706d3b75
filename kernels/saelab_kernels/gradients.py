"""Gradients of a loss through decode and encode, at the kept pairs only.

For `x_hat = decode(code, W_dec)` and `z = x @ W_enc + b_enc`, with `g_out = dL/dx_hat`:

    dz[e]        = (<g_out[row e], W_dec[column e]> + g_values[e]) * (value e > 0)
    dW_dec       = code^T @ g_out
    dW_enc       = x^T @ dz          (dz as a sparse matrix [rows, d_sae])
    db_enc       = column sums of dz

The selection is constant under differentiation, as in every TopK recipe. The gradient with respect to `b_dec`
is the caller's: `g_out.sum(0)`, and, where `x` has `b_dec` subtracted, `- W_enc @ db_enc` in addition.
"""

from __future__ import annotations

import torch

from saelab_kernels.buffers import GradientBuffers, Gradients, GradientTerm, Parts
from saelab_kernels.code import SparseCode
from saelab_kernels.dispatch import get_backend
from saelab_kernels.shapes import Float, Tensor


@torch.no_grad()
def code_gradients(
    code: SparseCode,
    x: Float[Tensor, "rows d_in"],
    W_dec: Float[Tensor, "d_sae d_out"],
    g_out: Float[Tensor, "rows d_out"] | None,
    *,
    g_values: Float[Tensor, "*entries"] | None = None,
    buffers: GradientBuffers | None = None,
    accumulate: bool = False,
    parts: Parts = "both",
    backend: str | None = None,
) -> Gradients:
    """Gradients of `W_enc`, `b_enc`, `W_dec` and the code's values.

    Args:
        code: the code that was decoded.
        x: the encoder's input, as given to `encode_select`.
        W_dec: the decoder that was used.
        g_out: dL/dx_hat; None if the loss does not depend on the reconstruction.
        g_values: direct dL/dvalues (a sparsity penalty), the shape of `code.values`; added before the mask.
        buffers: written and returned; fresh memory if None.
        accumulate: add to what `buffers` hold instead of replacing it.
        parts: "encoder" or "decoder" leaves the buffers of the other one alone (fresh ones are 0), at less
            cost; the values' gradient is always found.
        backend: a name of `dispatch.available_backends()`; None chooses by the device.

    Raises:
        ValueError: shapes or dtypes that do not fit together; accumulate without buffers.
    """
    term = GradientTerm(code, x, g_out, g_values)
    check_term(term, W_dec)
    shapes = (x.shape[1], code.d_sae, W_dec.shape[1])
    if buffers is None:
        if accumulate:
            raise ValueError("code_gradients: accumulate needs the buffers to add to")
        buffers = GradientBuffers.for_shapes(*shapes, dtype=x.dtype, device=x.device)
    elif buffers.W_enc.shape != shapes[:2] or buffers.W_dec.shape != W_dec.shape:
        raise ValueError(
            f"code_gradients: buffers W_enc {list(buffers.W_enc.shape)}, W_dec {list(buffers.W_dec.shape)} "
            f"must be {list(shapes[:2])} and {list(W_dec.shape)}"
        )
    return get_backend(backend, W_dec).code_gradients(term, W_dec, buffers, accumulate, parts)


@torch.no_grad()
def pair_products(
    code: SparseCode,
    W_dec: Float[Tensor, "d_sae d_out"],
    g_out: Float[Tensor, "rows d_out"],
    backend: str | None = None,
) -> Float[Tensor, "*entries"]:
    """`<g_out[row e], W_dec[column e]>` for every entry e, whatever its value: dL/df without the ReLU's mask.

    What a straight-through gradient needs at the entries of a band (JumpReLU). The shape of `code.values`;
    0 in spare capacity.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    if W_dec.ndim != 2 or W_dec.shape[0] != code.d_sae or g_out.shape != (code.n_rows, W_dec.shape[1]):
        raise ValueError(
            f"pair_products: W_dec {list(W_dec.shape)} and g_out {list(g_out.shape)} do not fit a code "
            f"{list(code.shape)}"
        )
    if not W_dec.dtype == g_out.dtype == code.values.dtype:
        raise ValueError(f"pair_products: all tensors must have the dtype of the code, {code.values.dtype}")
    return get_backend(backend, W_dec).pair_products(code, W_dec, g_out)


def check_term(term: GradientTerm, W_dec: Tensor) -> None:
    """Refuse a term that does not fit itself or the decoder (ValueError)."""
    code, x, g_out, g_values = term.code, term.x, term.g_out, term.g_values
    rows, d_sae = code.shape
    values = code.values
    if term.features is not None and W_dec.ndim == 2:
        if term.features.shape != (d_sae,) or term.features.dtype != torch.int64:
            raise ValueError(
                f"a term's features must be int64 [{d_sae}], one for each column of its code, not "
                f"{term.features.dtype} {list(term.features.shape)}"
            )
        d_sae = W_dec.shape[0]
    if x.ndim != 2 or x.shape[0] != rows or W_dec.ndim != 2 or W_dec.shape[0] != d_sae:
        raise ValueError(
            f"code_gradients: x {list(x.shape)} and W_dec {list(W_dec.shape)} do not fit a code "
            f"[{rows}, {d_sae}]"
        )
    if g_out is not None and g_out.shape != (rows, W_dec.shape[1]):
        raise ValueError(
            f"code_gradients: g_out {list(g_out.shape)} must be {[rows, W_dec.shape[1]]}, the shape of x_hat"
        )
    if g_values is not None and g_values.shape != values.shape:
        raise ValueError(
            f"code_gradients: g_values {list(g_values.shape)} must be {list(values.shape)}, as the values"
        )
    given = [tensor for tensor in (x, W_dec, g_out, g_values) if tensor is not None]
    if any(tensor.dtype != values.dtype for tensor in given):
        raise ValueError(f"code_gradients: all tensors must have the dtype of the code, {values.dtype}")
