"""Biases that follow how often their features fire: groups, target frequencies, and the update.

Paper: Chen, Sheen, Xiong, Wang and Yang 2025, arXiv 2506.14002 (group bias adaptation).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Float, Int, Tensor


class FrequencyRange(NamedTuple):
    """Target frequencies of K groups, geometric from the highest to the lowest (paper)."""

    groups: int
    """K."""
    highest: float
    """Target of group 0, as a share of the tokens."""
    lowest: float
    """Target of group K - 1; the same as ``highest`` where there is one group."""

    @classmethod
    def for_mean_l0(cls, k: float, d_sae: int, *, groups: int, ratio: float) -> FrequencyRange:
        """Return the range whose targets sum to ``k`` over all features: `k / sum_m rho^group(m)` (derived).

        Features stay at or below their targets, so that ``k`` is a ceiling of the mean L0.

        Args:
            k: Active features per token at most, on average.
            d_sae: Number of features.
            groups: K.
            ratio: Lowest over highest frequency, so that `rho = ratio^(1 / (K - 1))`.
        """
        if groups == 1:
            ratio = 1.0
        rho = ratio ** (1 / max(1, groups - 1))
        everyone, further = divmod(d_sae, groups)
        highest = k / sum(rho**j * (everyone + (j < further)) for j in range(groups))
        return cls(groups, highest, highest * ratio)

    def group_of(self, d_sae: int) -> Int[Tensor, " d_sae"]:
        """Return each feature's number modulo K: as random as the directions that features start with."""
        return torch.arange(d_sae) % self.groups

    def targets(self) -> Float[Tensor, " groups"]:
        """Return `highest * (lowest / highest)^(j / (K - 1))` for each group j, float32."""
        exponents = torch.arange(self.groups) / max(1, self.groups - 1)
        return self.highest * (self.lowest / self.highest) ** exponents


class Firing(NamedTuple):
    """What a buffer of tokens says about each feature; the tokens themselves are not needed."""

    counts: Int[Tensor, " d_sae"]
    """Tokens on which it was active."""
    peaks: Float[Tensor, " d_sae"]
    """Largest `w.x` where it was active, without the bias; 0 where it never was."""
    tokens: Int[Tensor, ""]
    """Tokens in the buffer."""


class BiasStep(NamedTuple):
    """How far a bias moves, and how far it may go."""

    gamma: float
    """Share of the largest pre-activation by which it moves."""
    epsilon: float
    """Frequency below which a feature counts as dead."""
    floor: Float[Tensor, ""]
    """Least bias: minus the largest pre-activation without bias that there can be."""


def peaks_of(code: SparseCode) -> Float[Tensor, " d_sae"]:
    """Return the largest value of each feature in a batch, 0 where it is not active. Does not wait for the device."""
    values, columns = code.values.reshape(-1), code.columns.reshape(-1).long()
    if code.count is not None:
        in_use = torch.arange(len(values), device=values.device) < code.count
        values, columns = values.where(in_use, 0), columns.where(in_use, 0)
    return values.new_zeros(code.d_sae).scatter_reduce_(0, columns, values, "amax")


def adapted_biases(
    b: Float[Tensor, " d_sae"], firing: Firing, frequencies: FrequencyRange, step: BiasStep
) -> Float[Tensor, " d_sae"]:
    """Return the biases after one adaptation (paper; its floor is -1, scaling it with the data is a reconstruction).

    With `p_hat` the share of the buffer's tokens on which a feature was active, `r = max(0, peak + b)` its
    largest pre-activation, and `R` the mean of the positive r of its group (0 where there is none):

        p_hat > target:    b <- max(b - gamma r, floor)
        p_hat < epsilon:   b <- min(b + gamma R, 0)
        in between:        b stays

    Args:
        b: Biases, at most 0.
        firing: What happened since the last adaptation.
        frequencies: Groups and targets.
        step: How far biases move.
    """
    group = frequencies.group_of(len(b)).to(b.device)
    p_hat = firing.counts / firing.tokens
    r = (firing.peaks + b).clamp_min(0).where(firing.counts > 0, 0)
    sums = b.new_zeros(frequencies.groups).index_add_(0, group, r)
    members = b.new_zeros(frequencies.groups).index_add_(0, group, (r > 0).to(b.dtype))
    lower = torch.maximum(b - step.gamma * r, step.floor)
    higher = (b + step.gamma * (sums / members.clamp_min(1))[group]).clamp_max(0)
    too_often = p_hat > frequencies.targets().to(b.device)[group]
    return torch.where(too_often, lower, torch.where(p_hat < step.epsilon, higher, b))
