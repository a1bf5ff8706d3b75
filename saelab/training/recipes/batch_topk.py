"""BatchTopK: the k B largest pre-activations of a whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.training.batch_threshold import averaged, calibrated_threshold
from saelab.training.recipes.base import Recipe
from saelab.training.recipes.moments import Clock, Forward, InferenceForm, Rows, RuleTensors, Setup, State
from saelab_kernels.rules import PerBatch, Rule, Threshold

THRESHOLD = "threshold"


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchTopK(Recipe):
    """A batch keeps its ``round(k B)`` largest features, so that tokens differ in how many they have.

    Paper: Bussmann, Leask and Nanda 2024, arXiv 2412.06410. `u = (x - b_dec) W_enc + b_enc [tokens, d_sae]`; of
    all pairs of the batch the ``round(k B)`` largest are kept where positive, ``x_hat = f W_dec + b_dec``; the loss is
    `mean |x - x_hat|^2 / Var(x)`, plus AuxK for dead features. ``k``, which need not be whole, is the exact mean
    number of features of a training batch. The rows of a step are the selection batch: the batch size of the
    configuration is a part of the rule.

    Inference keeps what exceeds one threshold, since a batch-wide ranking would let tokens see one another. The
    paper averages the smallest kept value over batches; here the threshold is calibrated on the finished weights
    over about 131,072 training rows (derived), or, as an option, averaged over the end of the training, in the manner
    of the reference code, of the largest value that was not kept: with as many pairs in a batch the two are the same.
    """

    name: ClassVar[str] = "batch-topk"

    k: float = 32.0
    """Mean active features per token."""
    threshold: Literal["calibrated", "average"] = "calibrated"
    """Where the threshold comes from: a pass over training rows at the end, or a running average."""

    def check(self, d_sae: int) -> None:
        if not 0 < self.k <= d_sae:
            raise UsageError(f"{self.name}: k must be above 0 and at most the width {d_sae}, not {self.k:g}")

    def init(self, params: SAEParameters, setup: Setup) -> State:
        return {THRESHOLD: torch.full((), torch.nan)} if self.threshold == "average" else {}

    def rule(self, state: State, clock: Clock) -> tuple[Rule, RuleTensors]:
        return PerBatch(self.k), RuleTensors(boundary=self.threshold == "average")

    @torch.no_grad()
    def after_step(self, params: SAEParameters, found: Forward, state: State, clock: Clock) -> State:
        boundary = found.selection.boundary
        if self.threshold != "average" or boundary is None:
            return state
        return state | {THRESHOLD: averaged(state[THRESHOLD], boundary, clock)}

    def finalise(self, params: SAEParameters, state: State, rows: Rows) -> InferenceForm:
        if self.threshold == "average":
            # Nothing was seen where every batch was skipped.
            return InferenceForm(Threshold(), theta=state[THRESHOLD].nan_to_num(0.0))
        return InferenceForm(Threshold(), theta=calibrated_threshold(params, rows, self.k))
