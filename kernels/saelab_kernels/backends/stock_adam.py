"""The optimiser step with materialised gradients: reused buffers and torch's own Adam."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.optim.adam import adam

from saelab_kernels.adam_state import NAMES, AdamOptions, AdamState, Weights
from saelab_kernels.buffers import GradientBuffers, GradientTerm
from saelab_kernels.contract import Backend
from saelab_kernels.shapes import Float, Tensor


def buffered_adam_step(
    backend: Backend,
    terms: Sequence[GradientTerm],
    weights: Weights,
    state: AdamState,
    options: AdamOptions,
    lr: float | Tensor,
) -> Float[Tensor, ""]:
    """See `saelab_kernels.adam`, for any backend that fills gradient buffers."""
    buffers = _buffers(weights, state.workspace)
    g_b_dec = torch.zeros_like(weights.b_dec)
    for index, term in enumerate(term.among_all(weights.W_dec.shape[0]) for term in terms):
        backend.code_gradients(term, weights.W_dec, buffers, index > 0, "both")
        if term.adds_b_dec and term.g_out is not None:
            g_b_dec += term.g_out.sum(dim=0)
    if options.input_bias:
        g_b_dec -= weights.W_enc @ buffers.b_enc
    if options.unit_rows:
        project_out_rows(buffers.W_dec, weights.W_dec)
    gradients = [buffers.W_enc.t(), buffers.b_enc, buffers.W_dec, g_b_dec]
    norm = torch.nn.utils.get_total_norm(gradients)
    if options.clip is not None:
        factor = (options.clip / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient *= factor
    state.steps += 1
    adam(
        _in_memory_order(weights),
        gradients,
        _in_memory_order(state.exp_avg),
        _in_memory_order(state.exp_avg_sq),
        [],
        [state.steps.clone() - 1 for _ in NAMES],
        fused=weights.W_dec.device.type in ("cpu", "cuda"),
        amsgrad=False,
        beta1=options.beta1,
        beta2=options.beta2,
        lr=lr,
        weight_decay=0.0,
        eps=options.eps,
        maximize=False,
    )
    if options.unit_rows:
        normalise_rows(weights.W_dec)
    return norm


@torch.no_grad()
def project_out_rows(gradient: Float[Tensor, "d_sae d"], rows: Float[Tensor, "d_sae d"]) -> None:
    """Remove from each row of the gradient its part along the (unit) row of weights, in place."""
    along = torch.einsum("fd,fd->f", gradient, rows)
    gradient.addcmul_(along[:, None], rows, value=-1.0)


@torch.no_grad()
def normalise_rows(rows: Float[Tensor, "d_sae d"]) -> None:
    """Scale each row to norm 1, in place."""
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)


def _buffers(weights: Weights, workspace: dict[str, Tensor]) -> GradientBuffers:
    """The gradients' memory, made at the first step."""
    if "W_enc" not in workspace:
        empty = weights.zeros_like()
        workspace |= {name: getattr(empty, name) for name in ("W_enc", "b_enc", "W_dec")}
    return GradientBuffers(workspace["W_enc"], workspace["b_enc"], workspace["W_dec"])


def _in_memory_order(tensors: Weights) -> list[Tensor]:
    # torch's fused Adam combines tensors by their place in memory, whatever their strides say.
    return [tensors.W_enc.t(), tensors.b_enc, tensors.W_dec, tensors.b_dec]
