"""Crosscoder: one dictionary that reads and reconstructs several hookpoints, of one model or of several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.sae.crosscoder_norms import source_norms
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
from saelab_kernels.request import Selection
from saelab_kernels.rules import PerBatch, Rule, Threshold
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Float, Tensor

WIDTHS = "widths"


@dataclass(frozen=True, kw_only=True, slots=True)
class Crosscoder(Recipe):
    """Features that several sources (layers, models) share; each has a decoder in every source.

    `z = sum_l (x_l - b_dec^l) W_enc^l + b_enc [tokens, d_sae]`, `x_hat_l = f W_dec^l + b_dec^l` (paper: Lindsey et
    al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model Diffing"; there without the pre-bias, which
    is a part of ``b_enc``: the same functions, of which Adam finds the centred form better). Every source is
    scaled to mean square 1 a coordinate by itself, and the sources stand side by side: `d_in = d_out = sum of
    widths`. The loss is `mean sum_l |x_l - x_hat_l|^2` over the total variance, plus AuxK.

    The paper's sparsity penalty is replaced by the BatchTopK form (Minder et al. 2025, arXiv 2504.02922, after
    the summary of its method; our reading): a batch keeps its ``k * tokens`` largest scores
    `z_i * sum_l |W_dec^l_i|`, what the paper's penalty weighs a feature with. A feature that writes the same
    length into two sources ranks sqrt(2) higher than one that writes into one source alone.

    The paper's decoder norms are free. Here the joined decoder row has norm 1 and the sources' norms are free
    inside it, which is the same set of functions with the same score (derived: `c f_i` with `W_dec_i / c` for any
    c > 0). Weights start as those of an autoencoder, `W_enc = W_dec^T`, independent in every source.

    Inference: score > theta is `z_i > theta / sum_l |W_dec^l_i|`, a threshold for each feature, which
    survives the folding of a scale for each source. theta is calibrated on frozen weights so that k features
    fire on the mean of the training tokens. With one source this is BatchTopK.
    """

    name: ClassVar[str] = "crosscoder"
    traits: ClassVar[Traits] = Traits(
        hooks="several",
        # Per-token scales of several sources cannot be undone from a code.
        allowed_normalisations=("scale", "none"),
        warm_start=False,
    )

    k: float = 32
    """Mean active features per token, all sources together."""

    def check(self, d_sae: int) -> None:
        if not 0 < self.k <= d_sae:
            raise UsageError(f"crosscoder: k must be above 0 and at most the width {d_sae}, not {self.k}")

    def init(self, params: SAEParameters, setup: Setup) -> State:
        return {WIDTHS: torch.tensor(setup.input_widths)}

    def rule(self, state: State, clock: Clock) -> tuple[Rule, RuleTensors]:
        return PerBatch(self.k), RuleTensors()

    def select(self, inputs: Inputs, params: SAEParameters, state: State, clock: Clock) -> Selection:
        rule, _ = self.rule(state, clock)
        scale = summed_norms(params, state)
        return encode_select(inputs.encoder, params.W_enc, params.b_enc, rule, scale=scale, sort=False)

    def finalise(self, params: SAEParameters, state: State, rows: Rows) -> InferenceForm:
        scale = summed_norms(params, state)
        scored = replace(params, W_enc=params.W_enc * scale, b_enc=params.b_enc * scale)
        return InferenceForm(Threshold(), theta=calibrated_threshold(scored, rows, self.k) / scale)


def summed_norms(params: SAEParameters, state: State) -> Float[Tensor, " d_sae"]:
    """Return `sum_l |W_dec^l_i|`, the factor of each feature's score; at least 1, since the joined row has norm 1."""
    return source_norms(params.W_dec.detach(), state[WIDTHS].tolist()).sum(1)
