"""Decode: from a sparse code to a reconstruction, or to its error."""

from __future__ import annotations

import torch

from saelab_kernels.code import SparseCode
from saelab_kernels.dispatch import get_backend
from saelab_kernels.shapes import Float, Tensor


@torch.no_grad()
def decode(
    code: SparseCode,
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"] | None = None,
    backend: str | None = None,
) -> Float[Tensor, "rows d_out"]:
    """`x_hat = code @ W_dec + b_dec`. No gradient is recorded; see `gradients.code_gradients`.

    Args:
        code: any form; negative values are allowed.
        W_dec: row i is the direction of feature i; the dtype of the code.
        b_dec: added to every row where given.
        backend: a name of `dispatch.available_backends()`; None chooses by the device.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    _check(code, W_dec, b_dec)
    return get_backend(backend, W_dec).decode(code, W_dec, b_dec)


@torch.no_grad()
def decode_error(
    code: SparseCode,
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"] | None,
    target: Float[Tensor, "rows d_out"],
    backend: str | None = None,
) -> tuple[Float[Tensor, "rows d_out"], Float[Tensor, " rows"]]:
    """`error = code @ W_dec + b_dec - target` and `|error|^2` of each row, in one pass. No gradient is recorded.

    Args:
        code: any form; negative values are allowed.
        W_dec: row i is the direction of feature i; the dtype of the code.
        b_dec: added to every row where given.
        target: what was to be reconstructed.
        backend: a name of `dispatch.available_backends()`; None chooses by the device.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    _check(code, W_dec, b_dec)
    if target.shape != (code.n_rows, W_dec.shape[1]) or target.dtype != W_dec.dtype:
        raise ValueError(
            f"decode_error: target {target.dtype} {list(target.shape)} must be {W_dec.dtype} "
            f"{[code.n_rows, W_dec.shape[1]]}"
        )
    return get_backend(backend, W_dec).decode_error(code, W_dec, b_dec, target)


def _check(code: SparseCode, W_dec: Tensor, b_dec: Tensor | None) -> None:
    if W_dec.ndim != 2 or W_dec.shape[0] != code.d_sae or W_dec.dtype != code.values.dtype:
        raise ValueError(
            f"decode: W_dec {W_dec.dtype} {list(W_dec.shape)} does not fit a code of {code.values.dtype} "
            f"values and {code.d_sae} features"
        )
    if b_dec is not None and b_dec.shape != W_dec.shape[1:]:
        raise ValueError(f"decode: b_dec {list(b_dec.shape)} must be [{W_dec.shape[1]}]")
