"""The operators for other people's trainers: under autograd, and inside `torch.compile(fullgraph=True)`.

    pairs = encode_top_k(x - b_dec, W_enc, b_enc, k=32)
    x_hat = decode(pairs, W_dec, b_dec)
    (x_hat - x).square().sum(dim=1).mean().backward()

Importing this module registers the operators of the namespace `saelab` with torch (`torch.ops.saelab`), with
shapes for tracing and first derivatives. The gradients are exact with the selection held constant, as in
`saelab_kernels.gradients`; that of a feature-major `W_enc` is feature-major. Second derivatives are not
implemented: backward through a backward (`create_graph=True`) raises RuntimeError where it would need one.

Every call is one call of the functions in `select`, `decode`, `gradients` and `adam`, with their arguments
and errors. `backend` is a name of `dispatch.available_backends()`; the empty string chooses by the device.
Codes of `encode_per_batch`, `encode_per_feature` and `encode_threshold` have a size that depends on the data:
torch must know it on the host, so these wait for the device. The others do not.

Two backward operators sort the code twice and multiply its pairs once more than
`gradients.code_gradients`, which does both halves at once: a loop that calls it by hand is the faster one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

# Imported for what they register.
import saelab_kernels.torch_ops_adam
import saelab_kernels.torch_ops_decode
import saelab_kernels.torch_ops_encode  # noqa: F401
from saelab_kernels.adam_state import AdamOptions, AdamState, Weights
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Float, Int, Tensor


class Pairs(NamedTuple):
    """The kept pairs of a batch: what a `SparseCode` holds, in a form that autograd and tracing know."""

    values: Float[Tensor, "*entries"]
    """Differentiable; `[rows, k]`, or `[nnz]` with `offsets`."""
    columns: Int[Tensor, "*entries"]
    """int32; the feature of each entry."""
    offsets: Int[Tensor, " rows_plus_one"] | None = None
    """int64; row r owns entries `offsets[r]` to `offsets[r + 1]`; None where every row has k."""
    boundary: Float[Tensor, "*units"] | None = None
    """The largest score that was not kept, for each row, the batch or each feature; without a gradient."""

    def code(self, d_sae: int) -> SparseCode:
        """These pairs as a `SparseCode` of `d_sae` features, without a gradient."""
        return SparseCode(self.values.detach(), self.columns, d_sae, self.offsets)


def encode_top_k(
    x: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
    *,
    scale: Float[Tensor, " d_sae"] | None = None,
    columns: Int[Tensor, " n"] | None = None,
    budgets: Int[Tensor, " rows"] | None = None,
    sort: bool = True,
    backend: str = "",
) -> Pairs:
    """The `k` largest positive pre-activations of each row (`select.encode_select` with `PerToken`).

    Differentiable in `x`, `W_enc` and `b_enc`. Values have the shape `[rows, min(k, columns)]`, falling by
    score (in any order with `sort=False`), 0 where fewer are positive; the boundary is `[rows]`.
    """
    found = torch.ops.saelab.encode_top_k(x, W_enc, b_enc, k, scale, columns, budgets, sort, backend)
    values, kept, boundary = found
    return Pairs(values, kept, None, boundary)


def encode_per_batch(
    x: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    k: float,
    *,
    scale: Float[Tensor, " d_sae"] | None = None,
    columns: Int[Tensor, " n"] | None = None,
    backend: str = "",
) -> Pairs:
    """The `round(k * rows)` largest of the batch (`select.encode_select` with `PerBatch`); the boundary is 0-d.

    Differentiable in `x`, `W_enc` and `b_enc`. Waits for the device.
    """
    return Pairs(*torch.ops.saelab.encode_per_batch(x, W_enc, b_enc, k, scale, columns, backend))


def encode_per_feature(
    x: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    budgets: Int[Tensor, " d_sae"],
    *,
    scale: Float[Tensor, " d_sae"] | None = None,
    columns: Int[Tensor, " n"] | None = None,
    backend: str = "",
) -> Pairs:
    """The `budgets[i]` largest of each column (`select.encode_select` with `PerFeature`).

    Differentiable in `x`, `W_enc` and `b_enc`. The boundary is `[d_sae]`, or `[n]` with `columns`. Waits for
    the device.
    """
    return Pairs(*torch.ops.saelab.encode_per_feature(x, W_enc, b_enc, budgets, scale, columns, backend))


def encode_threshold(
    x: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    theta: Float[Tensor, "*d_sae"],
    *,
    scale: Float[Tensor, " d_sae"] | None = None,
    columns: Int[Tensor, " n"] | None = None,
    backend: str = "",
) -> Pairs:
    """Every positive pre-activation above `theta`, 0-d or `[d_sae]` (`select.encode_select` with `Threshold`).

    Differentiable in `x`, `W_enc` and `b_enc`, not in `theta`. Has no boundary. Waits for the device.
    """
    return Pairs(*torch.ops.saelab.encode_threshold(x, W_enc, b_enc, theta, scale, columns, backend))


def decode(
    pairs: Pairs,
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"] | None = None,
    backend: str = "",
) -> Float[Tensor, "rows d_out"]:
    """`x_hat = code @ W_dec + b_dec` (`decode.decode`), differentiable in the values, `W_dec` and `b_dec`."""
    return torch.ops.saelab.decode(pairs.values, pairs.columns, pairs.offsets, W_dec, b_dec, backend)


def decode_error(
    pairs: Pairs,
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"] | None,
    target: Float[Tensor, "rows d_out"],
    backend: str = "",
) -> tuple[Float[Tensor, "rows d_out"], Float[Tensor, " rows"]]:
    """`error = x_hat - target` and `|error|^2` of each row (`decode.decode_error`).

    Differentiable in the values, `W_dec`, `b_dec` and `target`.
    """
    return torch.ops.saelab.decode_error(
        pairs.values, pairs.columns, pairs.offsets, W_dec, b_dec, target, backend
    )


@torch.no_grad()
def adam_step(
    terms: Sequence[GradientTerm],
    weights: Weights,
    state: AdamState,
    options: AdamOptions,
    lr: float | Tensor,
    backend: str = "",
) -> Float[Tensor, ""]:
    """One optimiser step (`adam.SparseAdam.step`), in place; the norm of the gradient before clipping.

    Keeps nothing between calls but `state`, not even memory: the backend "torch" then allocates its gradient
    matrices at every step, which `SparseAdam` does not.
    """
    codes = [term.code for term in terms]
    lr = lr if isinstance(lr, Tensor) else weights.W_dec.new_full((), lr)
    moments = [list(moment.named().values()) for moment in (weights, state.exp_avg, state.exp_avg_sq)]
    return torch.ops.saelab.adam_step(
        [code.values for code in codes],
        [code.columns for code in codes],
        [code.offsets for code in codes],
        [term.x for term in terms],
        [term.g_out for term in terms],
        [term.g_values for term in terms],
        [term.adds_b_dec for term in terms],
        *moments,
        state.steps,
        lr,
        options.beta1,
        options.beta2,
        options.eps,
        options.clip,
        options.unit_rows,
        options.input_bias,
        backend,
    )
