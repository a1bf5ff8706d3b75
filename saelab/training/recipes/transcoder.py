"""Transcoder: sparse features that map one hookpoint to another, such as an MLP's input to its output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.training.batch_threshold import calibrated_threshold
from saelab.training.recipes.base import Recipe
from saelab.training.recipes.moments import (
    Clock,
    InferenceForm,
    Inputs,
    Rows,
    RuleTensors,
    Setup,
    State,
    Traits,
)
from saelab_kernels.decode import decode
from saelab_kernels.gradients import code_gradients
from saelab_kernels.rules import PerBatch, PerToken, Rule, Threshold
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Float, Tensor

CENTRE = "centre"


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcoder(Recipe):
    """Features that read the input ``x`` and write the target ``y`` (paper: Dunefsky et al. 2024, arXiv 2406.11944).

    `z = x W_enc + b_enc [tokens, d_sae]`, the k largest of each token are kept, `y_hat = f W_dec + b_dec`, with
    `W_dec [d_sae, d_out]`; no ``b_dec`` is subtracted from x, which has another width and meaning. The loss is
    `mean |y - y_hat|^2 / Var(y)`, plus AuxK: all about the target. The paper penalises the L1 norm of f; keeping
    the k largest follows the reference code (EleutherAI/sparsify).

    Ours, and the same functions: while training the encoder sees ``x - c`` with the mean ``c`` of the inputs, and
    `c W_enc` is taken from ``b_enc`` at the end. Without it Adam shifts all of a feature's pre-activations along the
    mean at every step: four in five features died on the embedded model's MLP (measured). The first decoder
    row of a feature is the direction of `sum f_i (y - b_dec)` under the random encoder, and ``W_enc`` is scaled so
    that this first reconstruction is the best of its multiples: random rows would first have to be silenced. The
    reference code starts from `W_dec = 0` and free norms instead; decoder rows have norm 1 here.

    Inference applies the same rule, or for the allocation ``batch`` one threshold, calibrated so that k features fire
    on the mean of the training tokens.
    """

    name: ClassVar[str] = "transcoder"
    traits: ClassVar[Traits] = Traits(
        input_bias=False,
        hooks="input and target",
        # The scale of a token's target is not known from its input.
        allowed_normalisations=("scale", "none"),
        warm_start=False,
    )

    k: int = 32
    """Active features per token."""
    allocation: Literal["token", "batch"] = "token"
    """Whether each token keeps its k largest features, or a batch its ``k * tokens`` largest."""

    def check(self, d_sae: int) -> None:
        if not 1 <= self.k <= d_sae:
            raise UsageError(
                f"{self.name}: k must be a whole number from 1 to the width {d_sae}, not {self.k}"
            )

    def init(self, params: SAEParameters, setup: Setup) -> State:
        centre = setup.inputs.mean(0)
        answer_with_targets(params, setup.inputs - centre, setup.targets - params.b_dec, self.k)
        return {CENTRE: centre}

    def prepare(self, inputs: Inputs, state: State) -> Inputs:
        return inputs._replace(encoder=inputs.encoder - state[CENTRE])

    def rule(self, state: State, clock: Clock) -> tuple[Rule, RuleTensors]:
        return PerToken(self.k) if self.allocation == "token" else PerBatch(self.k), RuleTensors()

    def finalise(self, params: SAEParameters, state: State, rows: Rows) -> InferenceForm:
        seen = replace(params, b_enc=params.b_enc - state[CENTRE] @ params.W_enc)
        if self.allocation == "token":
            return InferenceForm(PerToken(self.k), params=seen)
        return InferenceForm(Threshold(), theta=calibrated_threshold(seen, rows, self.k), params=seen)


@torch.no_grad()
def answer_with_targets(
    params: SAEParameters, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"], k: int
) -> None:
    """Point each decoder row where the target goes when its feature is among the k largest, in place (ours).

    Features that are never among them keep their rows. ``W_enc`` is multiplied by the number that brings the
    reconstruction nearest to the target: as all rows answer on their own, their sum would overshoot.

    Args:
        params: Weights with `b_enc = 0`.
        x: Centred inputs.
        y: Targets minus ``b_dec``.
        k: Features that a token keeps.
    """
    code = encode_select(x, params.W_enc, params.b_enc, PerToken(k)).code
    answers = code_gradients(code, x, params.W_dec, y, parts="decoder").W_dec
    norms = torch.linalg.vector_norm(answers, dim=1, keepdim=True)
    params.W_dec.copy_(torch.where(norms > 0, answers / norms.clamp_min(1e-30), params.W_dec))
    y_hat = decode(code, params.W_dec, torch.zeros_like(params.b_dec))
    power = y_hat.square().sum()
    if power > 0:
        params.W_enc.mul_((y_hat * y).sum() / power)
