"""Features of very different frequency, as in language."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelab.evaluation.synthetic.planted import SparseSums, require
from saelab_kernels.shapes import Bool, Float, Tensor


@dataclass(frozen=True, kw_only=True)
class PowerLawFeatures(SparseSums):
    """Independent features; the one of rank r = 1, 2, ... is on with probability ~ 1 / (r + offset)^exponent.

    The probabilities add up to ``mean_active``; feature i has rank i + 1.
    """

    n_features: int = 256
    """Planted directions."""
    d_in: int = 48
    """Dimensions that they share."""
    mean_active: float = 8.0
    """Mean number of features that are on in a row."""
    noise: float = 0.02
    """Standard deviation of Gaussian noise added to every element."""
    exponent: float = 1.0
    """How fast the frequency falls with the rank; 0 makes all equal."""
    offset: float = 4.0
    """Added to the rank: flattens the head of the distribution."""

    def __post_init__(self) -> None:
        require(
            self.exponent >= 0 and self.offset >= 0,
            f"exponent and offset must not be negative, not {self.exponent:g} and {self.offset:g}",
        )
        super().__post_init__()

    def frequencies(self) -> Float[Tensor, " n_features"]:
        ranks = torch.arange(1, self.n_features + 1, dtype=torch.float64)
        weights = (ranks + self.offset) ** -self.exponent
        return self.mean_active * weights / weights.sum()

    def on(self, rows: int, generator: torch.Generator) -> Bool[Tensor, "rows n_features"]:
        return torch.rand(rows, self.n_features, generator=generator) < self.frequencies().float()
