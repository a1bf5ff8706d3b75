"""g-SAE: the k features of each token that rank highest by representation and by effect on the model's loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.training.batch_threshold import averaged
from saelab.training.recipes.moments import (
    Clock,
    Forward,
    InferenceForm,
    Inputs,
    Rows,
    RuleTensors,
    Setup,
    State,
    Traits,
)
from saelab.training.recipes.topk import TopK
from saelab_kernels.request import Attribution
from saelab_kernels.rules import PerToken
from saelab_kernels.select import encode_select

if TYPE_CHECKING:
    from saelab_kernels.request import Selection

MEAN_C = "mean_c"
SMALLEST_MEAN = 1e-30
"""Stands in for a mean of 0, which gradients that are all 0 have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gradient(TopK):
    """TopK that also asks what a feature does to the model's loss (paper: Olmo et al. 2024, arXiv 2411.10397).

    With the gradient g `[tokens, d_in]` of the model's summed next-token loss at the activation,
    `c = |g W_dec^T| [tokens, d_sae]` estimates what removing a feature does to the loss, per unit of its
    value (derived: first order). The k largest of `s = z (1 + beta c / mean(c))` of each token are kept
    where z > 0, and **their values are z**: loss, AuxK (dead features by plain z) and everything else are TopK's. No
    gradient flows through g, c or the selection.

    That gradients enter when selecting, as `beta z |W_dec g|`, is the paper's; the additive form, the
    normalisation of c and the default of beta are reconstructions. A pure product (``mul``, the limit of a
    large beta) hardly asks for the representation: its FVU and KL are far worse than TopK's, while a moderate beta
    leaves FVU within 1 % and recovers a little more of the loss (measured: one short run each, embedded model).

    Needs gradients beside the activations (`saelab cache --gradients`; live they are taken as it trains).
    With the true next token as label they tell the encoder what comes next; ``--gradient-labels sampled``
    takes labels from the model's own prediction instead.

    Inference is TopK on z, which needs no gradients; `SparseAutoencoder.encode(x, gradients)` ranks as in
    training. ``k`` is the number of active features per token. With beta 0 this is `topk` to the bit.
    """

    name: ClassVar[str] = "gradient"
    traits: ClassVar[Traits] = Traits(loss_gradients=True)

    beta: float = 0.3
    """Weight of the effect on the loss against the representation; 0 is TopK. Without meaning for ``mul``."""
    mode: Literal["add", "mul"] = "add"
    """Score: ``add`` is z (1 + beta c), ``mul`` is z c."""
    norm: Literal["token", "global"] = "token"
    """What c is divided by: its mean over the features of the token, so that beta acts evenly on tokens with large and
    small gradients, or a running mean over tokens."""

    def check(self, d_sae: int) -> None:
        TopK.check(self, d_sae)
        if not 0 <= self.beta < math.inf:
            raise UsageError(f"gradient: beta must be a number of at least 0, not {self.beta}")

    def init(self, params: SAEParameters, setup: Setup) -> State:
        return {MEAN_C: torch.full((), torch.nan)} if self._averages else {}

    def select(self, inputs: Inputs, params: SAEParameters, state: State, clock: Clock) -> Selection:
        tensors = RuleTensors()
        if self._attributes:
            tensors = RuleTensors(attribution=self._attribution(inputs, params, state))
        return encode_select(
            inputs.encoder, params.W_enc, params.b_enc, PerToken(self.k), sort=False, **tensors._asdict()
        )

    @torch.no_grad()
    def after_step(self, params: SAEParameters, found: Forward, state: State, clock: Clock) -> State:
        """Take this batch's mean of c into the running one."""
        if not self._averages:
            return state
        assert found.selection.attribution_mean is not None
        return {MEAN_C: averaged(state[MEAN_C], found.selection.attribution_mean.mean(), clock)}

    def finalise(self, params: SAEParameters, state: State, rows: Rows) -> InferenceForm:
        form = TopK.finalise(self, params, state, rows)
        if not self._attributes:
            return form
        mean_c = None
        if self._averages:  # nothing was seen where every batch was skipped
            mean_c = max(float(state[MEAN_C].nan_to_num(0.0)), SMALLEST_MEAN)
        score = {"beta": self.beta, "mode": self.mode, "norm": self.norm, "mean_c": mean_c}
        return form._replace(attribution=score)

    @property
    def _attributes(self) -> bool:
        """Whether the score differs from z."""
        return self.mode == "mul" or self.beta > 0

    @property
    def _averages(self) -> bool:
        return self._attributes and self.norm == "global"

    def _attribution(self, inputs: Inputs, params: SAEParameters, state: State) -> Attribution:
        g = inputs.gradients
        assert g is not None, "the views give gradients where the traits ask for them"
        by_token = Attribution(g=g, W_dec=params.W_dec, beta=self.beta, mode=self.mode)
        if not self._averages:
            return by_token
        # The kernels take a number: on a GPU this waits for the device, once a step.
        mean_c = float(state[MEAN_C])
        if math.isnan(mean_c):  # the first batch is measured by its own mean
            found = encode_select(
                inputs.encoder, params.W_enc, params.b_enc, PerToken(1), attribution=by_token
            )
            assert found.attribution_mean is not None
            mean_c = float(found.attribution_mean.mean())
        return replace(by_token, norm="global", mean_c=max(mean_c, SMALLEST_MEAN))
