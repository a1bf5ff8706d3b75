"""The optimiser step as an operator of torch that changes weights and moments in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saelab_kernels.adam import checked_adam_step
from saelab_kernels.adam_state import AdamOptions, AdamState, Weights
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.code import SparseCode
from saelab_kernels.dispatch import get_backend
from saelab_kernels.shapes import Tensor


def _adam_step(
    values: Sequence[Tensor],
    columns: Sequence[Tensor],
    offsets: Sequence[Tensor | None],
    x: Sequence[Tensor],
    g_out: Sequence[Tensor | None],
    g_values: Sequence[Tensor | None],
    adds_b_dec: Sequence[bool],
    weights: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    steps: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    clip: float | None,
    unit_rows: bool,
    input_bias: bool,
    backend: str = "",
) -> Tensor:
    mine = Weights(*weights)
    d_sae = mine.W_dec.shape[0]
    terms = [
        GradientTerm(SparseCode(v, c, d_sae, o), one_x, g, gv, adds)
        for v, c, o, one_x, g, gv, adds in zip(
            values, columns, offsets, x, g_out, g_values, adds_b_dec, strict=True
        )
    ]
    state = AdamState(Weights(*exp_avg), Weights(*exp_avg_sq), steps)
    options = AdamOptions(beta1, beta2, eps, clip, unit_rows, input_bias)
    with torch.no_grad():
        return checked_adam_step(terms, mine, state, options, lr, get_backend(backend or None, mine.W_dec))


adam_step = torch.library.custom_op(
    "saelab::adam_step",
    _adam_step,
    mutates_args=("weights", "exp_avg", "exp_avg_sq", "steps"),
    schema="(Tensor[] values, Tensor[] columns, Tensor?[] offsets, Tensor[] x, Tensor?[] g_out, "
    "Tensor?[] g_values, bool[] adds_b_dec, Tensor(a!)[] weights, Tensor(b!)[] exp_avg, "
    "Tensor(c!)[] exp_avg_sq, Tensor(d!) steps, Tensor lr, float beta1, float beta2, float eps, "
    'float? clip, bool unit_rows, bool input_bias, str backend="") -> Tensor',
)


@adam_step.register_fake
def _adam_step_shapes(values, columns, offsets, x, g_out, g_values, adds_b_dec, weights, *_):
    return weights[2].new_empty(())
