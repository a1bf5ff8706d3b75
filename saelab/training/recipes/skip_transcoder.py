"""Skip-transcoder: a transcoder with a linear map of its input beside the features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from saelab.sae.autoencoder import SAEParameters
from saelab.training.recipes.moments import (
    Clock,
    Forward,
    InferenceForm,
    Inputs,
    Rows,
    Setup,
    State,
    Traits,
)
from saelab.training.recipes.transcoder import CENTRE, Transcoder

W_SKIP = "W_skip"


@dataclass(frozen=True, kw_only=True, slots=True)
class SkipTranscoder(Transcoder):
    """A transcoder with `+ x W_skip`, `W_skip [d_in, d_out]` (paper: Paulo, Shabalin and Belrose 2025, 2501.18823).

    `y_hat = f W_dec + x W_skip + b_dec`: the sparse part explains `y - x W_skip`, and the linear part is not counted
    in k. ``W_skip`` starts at 0 and is trained by Adam with the weights' learning rate (reference code:
    EleutherAI/sparsify, which has another optimiser); its gradient is `x^T g` with the gradient g of the loss at
    `y_hat`. All else, the centring of the input included, is the transcoder's: `c W_skip` is taken
    from ``b_dec`` at the end.
    """

    name: ClassVar[str] = "skip-transcoder"
    traits: ClassVar[Traits] = replace(Transcoder.traits, own_parameters=(W_SKIP,))

    def own_numbers(self, d_in: int, d_out: int, d_sae: int) -> int:
        return d_in * d_out

    def init(self, params: SAEParameters, setup: Setup) -> State:
        return Transcoder.init(self, params, setup) | {W_SKIP: torch.zeros(setup.d_in, setup.d_out)}

    def forward(
        self, inputs: Inputs, params: SAEParameters, state: State, clock: Clock, variance: float
    ) -> Forward:
        rest = inputs._replace(target=inputs.target - inputs.encoder @ state[W_SKIP])
        found = Transcoder.forward(self, rest, params, state, clock, variance)
        g_out = found.terms[0].g_out
        assert g_out is not None, "the loss is one of the reconstruction"
        return found._replace(own={W_SKIP: inputs.encoder.T @ g_out})

    def finalise(self, params: SAEParameters, state: State, rows: Rows) -> InferenceForm:
        form = Transcoder.finalise(self, params, state, rows)
        assert form.params is not None, "the centring changes the weights"
        b_dec = params.b_dec - state[CENTRE] @ state[W_SKIP]
        return form._replace(params=replace(form.params, b_dec=b_dec), W_skip=state[W_SKIP])
