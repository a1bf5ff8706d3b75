"""Bias adaptation: every feature aims at the same frequency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from saelab.training.bias_groups import FrequencyRange
from saelab.training.recipes.tied_biases import TiedBiases


@dataclass(frozen=True, kw_only=True, slots=True)
class BiasAdaptation(TiedBiases):
    """Features that fire more often than one frequency get a lower bias, dead ones a higher (paper: Chen et al. 2025).

    Group bias adaptation with one group (paper, arXiv 2506.14002); for the model, the training and the inference form
    see `TiedBiases`. `k` is a ceiling of the mean L0: the frequency is `k / d_sae` where none is given.
    """

    name: ClassVar[str] = "bias-adaptation"

    frequency: float | None = None
    """Share of the tokens above which a feature's bias is lowered; following ``k`` where not given."""

    def frequencies(self, d_sae: int) -> FrequencyRange:
        if self.frequency is None:
            return FrequencyRange.for_mean_l0(self.k, d_sae, groups=1, ratio=1.0)
        return FrequencyRange(1, self.frequency, self.frequency)
