"""Feature Choice: each feature picks its tokens, as many as its allowance says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.training.allowances import UNIT, budgets_of_step, filled_allowances
from saelab.training.batch_threshold import averaged
from saelab.training.feature_thresholds import calibrated_feature_thresholds, log_thresholds
from saelab.training.recipes.moments import Clock, Forward, InferenceForm, Rows, RuleTensors, Setup, State
from saelab.training.recipes.mutual_choice import MutualChoice
from saelab.training.under_use import SHORTFALL, count, expected_densities, judge, new_counts
from saelab_kernels.rules import PerBatch, PerFeature, Rule, Threshold
from saelab_kernels.shapes import Float, Tensor

ALLOWANCES, LOG_THETA, BATCH = "allowances", "log_theta", "batch"


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureChoice(MutualChoice):
    """Feature i picks the m_i tokens of a batch on which it is largest (Ayonrinde 2024, arXiv 2411.02124).

    Paper: ``sum_b S[b, i] = m_i`` with ``sum_i m_i = M = k B``, allowances from a Zipf distribution, no dead
    features. Derived: only positive affinities are picked. All else is a **reconstruction**:

    - ``zipf``: the first ``first_share`` of the run is `MutualChoice`; then the Zipf curve of its densities gives
      feature i, by its rank, the share p_i, and the allowance ``clip(c p_i, least, B)`` with the c at which the sum
      is M (`saelab.training.allowances`). ``uniform``: every allowance is ``M / d_sae`` from the first step.
    - Allowances are not whole: in each step they are rounded down or up so that their sum is M and their mean over
      steps is exact. A feature with an allowance below 1 picks a token in that share of the steps; rounding it up
      to 1 would make rare features fire too often, and fixed whole numbers would be steps of a staircase.
    - Ranks are not taken again after the switch: a rank would follow from its own allowance.

    ``k``, which need not be whole, is the mean number of features of a training batch, less what features with fewer
    positive affinities than tokens to pick leave over. Tokens without any feature occur. The rows of a step are the
    selection batch: the batch size of the configuration is a part of the rule.

    Inference gives each feature a threshold at which it fires on its share ``m_i / B`` of the tokens: calibrated on
    the finished weights over about 131,072 training rows or, as an option and for features of which the sample
    expects fewer than 8 firings, a running average of `saelab.training.feature_thresholds.log_thresholds`. For
    allowances below 1 that average is too low a threshold, since it knows only steps with a pick. A feature with
    neither has the threshold 0.
    """

    name: ClassVar[str] = "feature-choice"

    variant: Literal["zipf", "uniform"] = "zipf"
    """Allowances along the Zipf curve of a first stage of Mutual Choice, or equal ones from the start."""
    first_share: float = 0.6
    """Share of the run that is Mutual Choice, where allowances follow the curve."""
    least: float = 1.0
    """Smallest allowance in tokens of a batch; lowered where the budget is below so many for every feature."""

    def check(self, d_sae: int) -> None:
        MutualChoice.check(self, d_sae)
        if not 0 < self.first_share < 1:
            raise UsageError(f"{self.name}: first_share must be between 0 and 1, not {self.first_share:g}")
        if not self.least >= 0:
            raise UsageError(f"{self.name}: least must be at least 0, not {self.least:g}")

    def init(self, params: SAEParameters, setup: Setup) -> State:
        batch = torch.tensor(setup.clock.batch)
        uniform = self._allowances(torch.ones(setup.d_sae), setup.clock.batch)
        log_theta = torch.full((setup.d_sae,), torch.nan)
        return new_counts(setup.d_sae) | {ALLOWANCES: uniform, LOG_THETA: log_theta, BATCH: batch}

    def features_choose(self, clock: Clock) -> bool:
        """Whether features pick tokens in this step; before, all pairs compete."""
        if self.variant == "uniform":
            return True
        fit_every = self.refit_steps(clock)
        switch = max(1, round(self.first_share * clock.steps / fit_every)) * fit_every
        return clock.step >= switch

    def rule(self, state: State, clock: Clock) -> tuple[Rule, RuleTensors]:
        if not self.features_choose(clock):
            return PerBatch(self.k), RuleTensors()
        budgets = budgets_of_step(state[ALLOWANCES], clock.step)
        return PerFeature(), RuleTensors(budgets=budgets, boundary=True)

    @torch.no_grad()
    def after_step(self, params: SAEParameters, found: Forward, state: State, clock: Clock) -> State:
        if self.features_choose(clock):
            seen = log_thresholds(found.selection)
            return state | {LOG_THETA: averaged(state[LOG_THETA], seen, clock)}
        count(state, found.code)
        if (clock.step + 1) % self.refit_steps(clock):
            return state
        return self._refitted(state, clock)

    def finalise(self, params: SAEParameters, state: State, rows: Rows) -> InferenceForm:
        theta = state[LOG_THETA].exp()
        if self.threshold == "calibrated":
            shares = state[ALLOWANCES].cpu().double() / (UNIT * int(state[BATCH]))
            found = calibrated_feature_thresholds(params, rows, shares)
            theta = found.where(found.isfinite(), theta)
        return InferenceForm(Threshold(), theta=theta.nan_to_num(0.0))

    def _refitted(self, state: State, clock: Clock) -> State:
        """Return the state with allowances along the curve, and after the judgement of under-used features."""
        expected = expected_densities(state)
        if expected is None:
            return state
        allowances = self._allowances(expected, clock.batch).to(state[ALLOWANCES].device)
        state = judge(state, expected, self.kappa) | {ALLOWANCES: allowances}
        is_last = self.features_choose(clock._replace(step=clock.step + 1))
        # Allowances take over from aux_zipf; AuxK goes on for what is dead.
        return state | {SHORTFALL: torch.zeros_like(state[SHORTFALL])} if is_last else state

    def _allowances(self, weights: Float[Tensor, " d_sae"], batch: int) -> Tensor:
        return filled_allowances(weights, round(self.k * batch), least=self.least, most=batch)
