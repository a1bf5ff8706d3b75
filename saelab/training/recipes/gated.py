"""Gated SAE: one affine map decides which features are active, another one how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from saelab.sae.autoencoder import SAEParameters
from saelab.training.initialise import shorten
from saelab.training.objectives import normalised_mse
from saelab.training.recipes.moments import (
    Clock,
    Forward,
    InferenceForm,
    Inputs,
    Loss,
    Rows,
    Setup,
    State,
    Traits,
)
from saelab.training.sparsity_control import COEFFICIENT, TERM, SteeredRecipe
from saelab_kernels.adam_state import Weights
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.decode import decode_error
from saelab_kernels.gradients import pair_products
from saelab_kernels.rules import Threshold

R_MAG, B_MAG = "r_mag", "b_mag"
FIRST_GUESS = 0.08


@dataclass(frozen=True, kw_only=True, slots=True)
class Gated(SteeredRecipe):
    """Gate and magnitude share their directions (paper: Rajamanoharan et al. 2024, arXiv 2404.16014).

    With `c = (x - b_dec) W_enc [tokens, d_sae]`, the gate `p = ReLU(c + b_gate)` and the magnitude
    `m = ReLU(exp(r_mag) c + b_mag)`, the code is `f = 1[p > 0] m`. The loss, divided by Var(x), is

        mean_b |x - f W_dec - b_dec|^2 + coefficient * sum_i p_i + |x - p W_dec' - b_dec'|^2

    where the decoder of the third term (with primes) is constant. So the gate's bias learns from the last two
    terms alone, and the decoder and the magnitude from the first alone. `b_gate` is kept as `b_enc`; `r_mag` and
    `b_mag`, ``[d_sae]``, start at 0 (from a finished SAE: `b_mag = b_enc`). Decoder rows have norm 1 and Adam's
    beta1 is 0 (reference code: dictionary_learning). Ours: the first encoder is shortened so that the first
    reconstruction, of half of all features, is of the length of its input.

    The coefficient is steered so that L0 reaches k (reconstruction, see `SparsityControl`).

    Inference is the training forward as a JumpReLU: weights `W_enc exp(r_mag)`, bias `b_mag`, and the threshold
    `max(0, b_mag - exp(r_mag) b_gate)`; 0 where an open gate can have the magnitude 0 (derived).
    """

    name: ClassVar[str] = "gated"
    traits: ClassVar[Traits] = Traits(beta1=0.0, held_gradients=True, own_parameters=(R_MAG, B_MAG))

    l1_coefficient: float | None = None
    """A fixed coefficient of the gate's penalty; steered so that L0 reaches k where not given."""

    @property
    def fixed(self) -> float | None:
        return self.l1_coefficient

    def init(self, params: SAEParameters, setup: Setup) -> State:
        if not setup.warm:
            shorten(params, setup.inputs)
        own = {R_MAG: torch.zeros_like(params.b_enc), B_MAG: params.b_enc.clone()}
        return own | self.control.start(FIRST_GUESS * setup.variance**0.5)

    def forward(
        self, inputs: Inputs, params: SAEParameters, state: State, clock: Clock, variance: float
    ) -> Forward:
        """Decode the magnitudes and, with the decoder held, the gate; gradients in closed form (derived).

        The kernels give every entry of a term the encoder gradient `<g_out, W_dec> + g_values`; the magnitude's is
        `exp(r_mag)` times the product, and the rest goes into ``g_values``. The bias gradient that comes with it
        belongs to no weight but `b_dec` (through `x - b_dec`): `adjust` takes it out of `b_gate`'s.
        """
        selection = self.select(inputs, params, state, clock)
        gate = selection.code.trimmed()
        columns, scale = gate.columns.long(), state[R_MAG].exp()
        stretched = (gate.values - params.b_enc[columns]) * scale[columns]
        code = gate.with_values((stretched + state[B_MAG][columns]).clamp_min(0))
        error, squares = decode_error(code, params.W_dec, params.b_dec, inputs.target)
        gate_error, gate_squares = decode_error(gate, params.W_dec, params.b_dec, inputs.target)

        share = 1 / (variance * len(inputs.target))
        g_out, price = 2 * share * error, share * state[COEFFICIENT]
        g_magnitude = pair_products(code, params.W_dec, g_out).masked_fill(code.values <= 0, 0)
        g_gate = pair_products(gate, params.W_dec, 2 * share * gate_error) + price
        g_b_mag = torch.zeros_like(scale).index_add_(0, columns, g_magnitude)
        g_r_mag = torch.zeros_like(scale).index_add_(0, columns, g_magnitude * stretched)

        def adjust(gradients: Weights) -> None:
            gradients.b_enc.sub_(scale * g_b_mag)

        by_gate = normalised_mse(gate_error, gate_squares, variance)
        total = normalised_mse(error, squares, variance) + by_gate + price * gate.values.sum()
        return Forward(
            selection=selection,
            code=code,
            error=error,
            squares=squares,
            loss=Loss(total, {TERM: state[COEFFICIENT], "gate_fvu": by_gate}),
            terms=[
                GradientTerm(code, inputs.encoder, g_out, (scale[columns] - 1) * g_magnitude),
                GradientTerm(gate, inputs.encoder, None, g_gate),
            ],
            own={R_MAG: g_r_mag, B_MAG: g_b_mag},
            adjust=adjust,
        )

    def finalise(self, params: SAEParameters, state: State, rows: Rows) -> InferenceForm:
        scale, b_mag = state[R_MAG].exp(), state[B_MAG]
        magnitude = SAEParameters(
            W_enc=params.W_enc * scale, b_enc=b_mag, W_dec=params.W_dec, b_dec=params.b_dec
        )
        theta = (b_mag - scale * params.b_enc).clamp_min(0)
        return InferenceForm(Threshold(), theta=theta, params=magnitude)
