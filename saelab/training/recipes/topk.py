"""TopK: the k largest pre-activations of each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.training.batch_threshold import calibrated_threshold
from saelab.training.recipes.base import Recipe
from saelab.training.recipes.moments import Clock, InferenceForm, Rows, RuleTensors, State
from saelab_kernels.rules import PerToken, Rule

THRESHOLD_TOKENS = 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class TopK(Recipe):
    """Each token keeps its k largest features (paper: Gao et al. 2024, arXiv 2406.04093).

    `u = (x - b_dec) W_enc + b_enc [tokens, d_sae]`; the k largest of each row are kept where
    positive, `x_hat = f W_dec + b_dec`; the loss is `mean |x - x_hat|^2 / Var(x)`, plus AuxK for
    dead features, which is the training loop's policy for every recipe. The latent bias follows the
    reference code; the normalised loss the paper's definition with a fixed variance.

    Inference applies the same rule. A scalar threshold with the same mean number of features is
    calibrated and stored as an option; it reconstructs worse (measured), so it is not the default.
    """

    name: ClassVar[str] = "topk"

    k: int = 32
    """Active features per token."""

    def check(self, d_sae: int) -> None:
        if not 1 <= self.k <= d_sae:
            raise UsageError(
                f"{self.name}: k must be a whole number from 1 to the width {d_sae}, not {self.k}"
            )

    def rule(self, state: State, clock: Clock) -> tuple[Rule, RuleTensors]:
        return PerToken(self.k), RuleTensors()

    def finalise(self, params: SAEParameters, state: State, rows: Rows) -> InferenceForm:
        theta = calibrated_threshold(params, rows, self.k, THRESHOLD_TOKENS)
        return InferenceForm(PerToken(self.k), optional_theta=theta)
