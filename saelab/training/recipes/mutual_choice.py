"""Mutual Choice: a batch keeps its largest features, and features that fire too seldom get help beside dead ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.training.dead import DeadFeatureTracker, aux_features
from saelab.training.recipes.batch_topk import BatchTopK
from saelab.training.recipes.moments import AuxFeatures, Clock, Forward, Inputs, Setup, State
from saelab.training.under_use import SHORTFALL, count, expected_densities, judge, new_counts
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MutualChoice(BatchTopK):
    """Tokens and features choose each other under one budget (Ayonrinde 2024, arXiv 2411.02124).

    Paper: the pairs of a batch compete under one total budget ``M = round(k B)``, ranked by affinity. Derived: this
    is the activation of `BatchTopK`, to the bit, and so are loss, inference and the meaning of ``k``.

    **aux_zipf is a reconstruction**; of the paper's we know that it generalises AuxK from dead features to those
    that fall below the Zipf curve of densities. Here: every 5 % of the run a curve is fitted to the densities
    (`saelab.sae.zipf`). A feature is judged once the curve expects 30 firings of it since it was last judged, and is
    under-used where it fired less than ``kappa`` times as often, and a Poisson test excludes chance
    (`saelab.training.under_use`). Under-used features take part in AuxK: each token's residual is explained by its
    ``aux_k`` largest candidates, of which a share of slots is reserved for dead features, so that the many under-used
    ones cannot crowd them out; an under-used feature's values count by its shortfall `1 - n / L` of n firings where L
    were expected. Slots that one kind does not need go to the other. The weight of the loss, 1/32 as for AuxK, is the
    configuration's ``dead.coefficient``. With ``kappa`` 0 no feature is under-used, and aux_zipf is AuxK exactly.
    """

    name: ClassVar[str] = "mutual-choice"

    kappa: float = 0.5
    """Share of the expected firings below which a feature is under-used; 0 leaves AuxK alone."""
    refit_share: float = 0.05
    """Share of the run between two fits of the curve."""
    dead_slots: float = 0.5
    """Share of AuxK's features of a token that is reserved for dead ones."""

    def check(self, d_sae: int) -> None:
        BatchTopK.check(self, d_sae)
        shares = {"kappa": self.kappa, "refit_share": self.refit_share, "dead_slots": self.dead_slots}
        for option, share in shares.items():
            if not 0 <= share <= 1:
                raise UsageError(f"{self.name}: {option} must be from 0 to 1, not {share:g}")

    def init(self, params: SAEParameters, setup: Setup) -> State:
        return BatchTopK.init(self, params, setup) | new_counts(setup.d_sae)

    @torch.no_grad()
    def after_step(self, params: SAEParameters, found: Forward, state: State, clock: Clock) -> State:
        state = BatchTopK.after_step(self, params, found, state, clock)
        count(state, found.code)
        if (clock.step + 1) % self.refit_steps(clock):
            return state
        expected = expected_densities(state)
        return state if expected is None else judge(state, expected, self.kappa)

    def refit_steps(self, clock: Clock) -> int:
        """Return the number of steps between two fits."""
        return max(1, round(self.refit_share * clock.steps))

    def aux(
        self, inputs: Inputs, params: SAEParameters, tracker: DeadFeatureTracker, state: State, aux_k: int
    ) -> AuxFeatures | None:
        dead, shortfall = tracker.dead, state[SHORTFALL]
        under_used = (shortfall > 0) & ~dead
        n_dead, n_under_used = int(dead.sum()), int(under_used.sum())
        if not n_under_used:
            return aux_features(inputs.encoder, params, dead, aux_k)
        for_dead = min(n_dead, max(round(self.dead_slots * aux_k), aux_k - n_under_used))
        parts = [
            aux_features(inputs.encoder, params, chosen, slots)
            for chosen, slots in ((dead, for_dead), (under_used, aux_k - for_dead))
            if slots
        ]
        weights = torch.where(dead, 1.0, shortfall)
        return _joined([part for part in parts if part is not None], weights)


def _joined(parts: list[AuxFeatures], weights: Tensor) -> AuxFeatures:
    """Return the features of all parts side by side; ``weights [d_sae]`` are those of all features."""
    columns, start = [], 0
    for part in parts:
        columns.append(part.code.columns + start)
        start += len(part.features)
    values = torch.cat([part.code.values for part in parts], 1)
    features = torch.cat([part.features for part in parts])
    return AuxFeatures(
        features,
        torch.cat([part.W_dec for part in parts]),
        SparseCode(values, torch.cat(columns, 1), start),
        weights[features].to(values.dtype),
    )
