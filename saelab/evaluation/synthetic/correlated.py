"""Features that are on together more often than chance, each as often as before."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelab.evaluation.synthetic.planted import SparseSums, require
from saelab_kernels.shapes import Bool, Float, Int, Tensor


@dataclass(frozen=True, kw_only=True)
class CorrelatedFeatures(SparseSums):
    """Groups of neighbouring features that fire together; different groups are independent.

    With ``p = mean_active / n_features`` each group draws one Bernoulli(p) value for every row. A member takes
    that value with probability ``sqrt(correlation)`` and one of its own otherwise. So each member is on with
    probability p, two of a group are both on with probability ``rho p + (1 - rho) p^2``, and their
    indicators have correlation ``rho`` exactly (derived). Coefficients stay independent.
    """

    correlation: float = 0.5
    """Correlation rho of the indicators of two features of a group, from 0 to 1."""
    group_size: int = 2
    """Features in a group; the last group takes what is left."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.correlation <= 1, f"correlation is {self.correlation:g}; it must be between 0 and 1"
        )
        require(self.group_size >= 1, f"group_size is {self.group_size}; it must be at least 1")

    def frequencies(self) -> Float[Tensor, " n_features"]:
        share = self.mean_active / self.n_features
        return torch.full((self.n_features,), share, dtype=torch.float64)

    def groups(self) -> Int[Tensor, " n_features"]:
        """Return the number of each feature's group, int64."""
        return torch.arange(self.n_features) // self.group_size

    def on(self, rows: int, generator: torch.Generator) -> Bool[Tensor, "rows n_features"]:
        groups, shape = self.groups(), (rows, self.n_features)
        common = torch.rand(rows, int(groups[-1]) + 1, generator=generator)[:, groups]
        takes_common = torch.rand(shape, generator=generator) < self.correlation**0.5
        own = torch.rand(shape, generator=generator)
        return torch.where(takes_common, common, own) < self.mean_active / self.n_features
