"""Group bias adaptation: groups of features aim at frequencies that fall from group to group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from saelab.errors import UsageError
from saelab.training.bias_groups import FrequencyRange
from saelab.training.recipes.tied_biases import TiedBiases


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupBiasAdaptation(TiedBiases):
    """K groups of features with target frequencies that fall geometrically (paper: Chen et al. 2025, arXiv 2506.14002).

    For the model, the training and the inference form see `TiedBiases`. A feature belongs to group `m mod K`.
    `k` is a ceiling of the mean L0: without explicit frequencies the highest is `k / (M mean_j rho^j)` with
    `rho = ratio^(1/(K-1))` (derived). The paper's frequencies: 0.1 down to 0.001 in its first version, 0.5 down to
    1e-3 or 1e-4 in the second.

    The paper's form (its toy experiment) is ``centre="zero", start="zero"`` with normalisation ``unit_norm``. The
    defaults are for activations of language models, which share a large mean.
    """

    name: ClassVar[str] = "group-bias-adaptation"

    groups: int = 10
    """Number of groups (paper: at least 10)."""
    ratio: float = 0.04
    """Lowest over highest frequency, where they follow ``k``."""
    highest_frequency: float | None = None
    """Target of the first group, as a share of the tokens; following ``k`` where not given."""
    lowest_frequency: float | None = None
    """Target of the last group; given together with the highest."""

    def check(self, d_sae: int) -> None:
        if not 1 <= self.groups <= d_sae:
            raise UsageError(f"{self.name}: groups must be from 1 to the width {d_sae}, not {self.groups}")
        if not 0 < self.ratio <= 1:
            raise UsageError(f"{self.name}: ratio must be above 0 and at most 1, not {self.ratio}")
        if (self.highest_frequency is None) != (self.lowest_frequency is None):
            raise UsageError(f"{self.name}: give highest_frequency and lowest_frequency together, or k alone")
        TiedBiases.check(self, d_sae)

    def frequencies(self, d_sae: int) -> FrequencyRange:
        if self.highest_frequency is None or self.lowest_frequency is None:
            return FrequencyRange.for_mean_l0(self.k, d_sae, groups=self.groups, ratio=self.ratio)
        return FrequencyRange(self.groups, self.highest_frequency, self.lowest_frequency)
