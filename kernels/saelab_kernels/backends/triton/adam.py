"""The optimiser step without gradient matrices: passes over features that find a row's gradient and move the row.

Without clipping one pass over decoder and encoder; with it two, the first for the norm. Nothing waits for the
device, and every shape is known beforehand, so that a step can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton

from saelab_kernels.adam_state import AdamOptions, AdamState, Weights
from saelab_kernels.backends.triton.adam_kernels import decoder_kernel, encoder_kernel
from saelab_kernels.backends.triton.feature_major import FeatureOrder, order_by_feature
from saelab_kernels.backends.triton.launch import Tuning, on_device, sum_dtype
from saelab_kernels.backends.triton.partial import EntryGradients, partial_gradients
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """What the passes of one step work on."""

    order: FeatureOrder
    found: EntryGradients
    weights: Weights
    state: AdamState
    options: AdamOptions
    squares_dec: Float[Tensor, " d_sae"]
    """Square of each feature's gradient, after the projection."""
    squares_enc: Float[Tensor, " programs"]
    through: Float[Tensor, "programs d_in"] | None
    """Parts of `W_enc @ g_b_enc`, with the weights before the step; None if `b_dec` does not act there."""
    features: int
    """Features of one program of the encoder's pass."""
    tuning: Tuning

    def constants(self, width: int) -> dict[str, Any]:
        """Compile-time constants of a kernel that moves rows of this width."""
        options = self.options
        adam = {"BETA1": options.beta1, "BETA2": options.beta2, "EPS": options.eps}
        return adam | self.tuning.constants(self.weights.W_dec.dtype, width)


def run_adam_step(
    terms: Sequence[GradientTerm],
    weights: Weights,
    state: AdamState,
    options: AdamOptions,
    lr: float | Tensor,
    tuning: Tuning,
) -> Float[Tensor, ""]:
    """See `saelab_kernels.adam`. The same bits for the same arguments.

    Temporary memory: some tens of bytes an entry; `2 nnz / (chunk + 1)` partial rows of `d_in + d_out` sums, the most
    that dense features can need; `encoder_programs` rows of `d_in` sums; a copy of all `g_out` if there are
    several terms, and of all `x` if these are not one tensor.
    """
    state.steps += 1
    schedule = _schedule(state, options, lr, sum_dtype(weights.W_dec.dtype))
    order = order_by_feature(terms, tuning.chunk)
    found = partial_gradients(order, weights.W_dec, tuning)
    step = _new_step(order, found, weights, state, options, tuning)
    one_pass = options.clip is None
    with on_device(weights.W_dec):
        if order.d_sae:
            _pass(step, schedule, first=True, update=one_pass)
        g_b_dec = _bias_gradient(terms, step)
        norm = torch.stack(
            [part.square().sum(dtype=torch.float64) for part in (g_b_dec, found.total)]
            + [part.sum(dtype=torch.float64) for part in (step.squares_dec, step.squares_enc)]
        )
        norm = norm.sum().sqrt()
        if options.clip is not None:
            schedule[2] = (options.clip / (norm + 1e-6)).clamp(max=1.0)
            if order.d_sae:
                _pass(step, schedule, first=False, update=True)
    _move_b_dec(weights, state, options, g_b_dec, schedule)
    return norm.to(weights.W_dec.dtype)


def _schedule(
    state: AdamState, options: AdamOptions, lr: float | Tensor, dtype: torch.dtype
) -> Float[Tensor, " three"]:
    """`lr / (1 - beta1^t)`, `1 / sqrt(1 - beta2^t)`, and the factor of clipping, still 1, for step t."""
    t = state.steps.double()
    rate = (lr.double() if isinstance(lr, Tensor) else lr) / (1 - torch.pow(options.beta1, t))
    scale = (1 - torch.pow(options.beta2, t)).rsqrt()
    return torch.stack([rate, scale, torch.ones_like(t)]).to(dtype)


def _new_step(
    order: FeatureOrder,
    found: EntryGradients,
    weights: Weights,
    state: AdamState,
    options: AdamOptions,
    tuning: Tuning,
) -> _Step:
    features = triton.cdiv(order.d_sae, tuning.encoder_programs) if options.input_bias else 1
    programs = triton.cdiv(order.d_sae, max(features, 1))
    return _Step(
        order=order,
        found=found,
        weights=weights,
        state=state,
        options=options,
        squares_dec=found.total.new_empty(order.d_sae),
        squares_enc=found.total.new_empty(programs),
        through=found.total.new_empty(programs, order.x.shape[1]) if options.input_bias else None,
        features=features,
        tuning=tuning,
    )


def _pass(step: _Step, schedule: Tensor, first: bool, update: bool) -> None:
    """Decoder, then encoder, which needs what the decoder's pass wrote about the entries."""
    order, found, weights = step.order, step.found, step.weights
    mean, square = step.state.exp_avg, step.state.exp_avg_sq
    decoder_kernel[(order.d_sae,)](
        order.values,
        order.g_values,
        order.g_rows,
        order.offsets,
        order.chunk_offsets,
        order.g_out,
        0 if order.g_out is None else order.g_out.stride(0),
        found.dz,
        found.partial_dec,
        found.partial_sums,
        found.along,
        found.total,
        weights.W_dec,
        mean.W_dec,
        square.W_dec,
        schedule,
        step.squares_dec,
        weights.W_dec.shape[1],
        FIRST=first,
        UPDATE=update,
        UNIT_ROWS=step.options.unit_rows,
        **step.constants(weights.W_dec.shape[1]),
    )
    encoder_kernel[(step.squares_enc.shape[0],)](
        order.x_rows,
        order.offsets,
        order.chunk_offsets,
        order.x,
        order.x.stride(0),
        found.dz,
        found.partial_enc,
        found.total,
        weights.W_enc,
        mean.W_enc,
        square.W_enc,
        weights.b_enc,
        mean.b_enc,
        square.b_enc,
        schedule,
        step.squares_enc,
        step.through if first else None,
        order.d_sae,
        order.x.shape[1],
        step.features,
        FIRST=first,
        UPDATE=update,
        **step.constants(order.x.shape[1]),
    )


def _bias_gradient(terms: Sequence[GradientTerm], step: _Step) -> Float[Tensor, " d_out"]:
    """Of `b_dec`: what its reconstructions lose, less what the encoder's input gains."""
    gradient = step.found.total.new_zeros(step.weights.b_dec.shape[0])
    for term in terms:
        if term.adds_b_dec and term.g_out is not None:
            gradient += term.g_out.sum(dim=0, dtype=gradient.dtype)
    if step.through is not None:
        gradient -= step.through.sum(dim=0)
    return gradient


def _move_b_dec(
    weights: Weights, state: AdamState, options: AdamOptions, gradient: Tensor, schedule: Tensor
) -> None:
    """Adam's step of the one small vector, in torch."""
    rate, scale, factor = schedule.unbind()
    gradient = gradient * factor
    mean, square = state.exp_avg.b_dec, state.exp_avg_sq.b_dec
    mean.copy_(options.beta1 * mean.to(gradient.dtype) + (1 - options.beta1) * gradient)
    square.copy_(options.beta2 * square.to(gradient.dtype) + (1 - options.beta2) * gradient.square())
    spread = square.to(gradient.dtype).sqrt() * scale + options.eps
    weights.b_dec.copy_(weights.b_dec.to(gradient.dtype) - rate * mean.to(gradient.dtype) / spread)
