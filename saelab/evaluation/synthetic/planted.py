"""What planted data are: known unit directions, and how much of each is in every row."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch

from saelab.errors import UsageError
from saelab_kernels.shapes import Bool, Float, Tensor


class PlantedBatch(NamedTuple):
    """Activations and what they were made of; float32."""

    x: Float[Tensor, "rows d_in"]
    """Activations."""
    coefficients: Float[Tensor, "rows n_features"]
    """How much of each planted direction is in each row (before any scaling to unit norm)."""


@dataclass(frozen=True, kw_only=True)
class Planted(ABC):
    """Data whose true features are known. Every batch is a pure function of the fields and its index."""

    n_features: int = 128
    """Planted directions."""
    d_in: int = 42
    """Dimensions that they share."""
    seed: int = 0
    """Decides the directions and, with the index, every batch."""

    def __post_init__(self) -> None:
        require(self.n_features >= 1 and self.d_in >= 1, "n_features and d_in must be at least 1")

    def directions(self) -> Float[Tensor, "n_features d_in"]:
        """Return the planted directions: unit-norm Gaussian vectors."""
        rows = torch.randn(self.n_features, self.d_in, generator=self.draws("directions"))
        return rows / rows.norm(dim=1, keepdim=True)

    @abstractmethod
    def frequencies(self) -> Float[Tensor, " n_features"]:
        """Return the probability that each feature is on in a row, float64."""

    @abstractmethod
    def batch(self, index: int, rows: int) -> PlantedBatch:
        """Return batch ``index``, a pure function of the fields, ``index`` and ``rows``."""

    def draws(self, purpose: str) -> torch.Generator:
        """Return the random numbers for a purpose; hashed, so that neighbouring seeds give unrelated ones."""
        digest = hashlib.blake2b(f"{self.seed} {purpose}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


@dataclass(frozen=True, kw_only=True)
class SparseSums(Planted):
    """Sparse sums of the directions; a feature that is on has a coefficient uniform in [0.5, 1.5].

    Neither the number nor the sum of the coefficients is constant, so the directions are identifiable
    even when a decoder bias is trained (measured). A subclass says which features are on together.
    """

    mean_active: float = 3.0
    """Mean number of features that are on in a row."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise added to every element."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 < self.mean_active <= self.n_features,
            f"mean_active is {self.mean_active:g}; it must be in (0, {self.n_features}]",
        )
        require(self.noise >= 0, f"noise is {self.noise:g}; it must not be negative")
        most = float(self.frequencies().max())
        require(
            most <= 1,
            f"the most frequent feature would be on with probability {most:.3g}; lower mean_active",
        )

    @abstractmethod
    def on(self, rows: int, generator: torch.Generator) -> Bool[Tensor, "rows n_features"]:
        """Draw which features are on."""

    def batch(self, index: int, rows: int) -> PlantedBatch:
        generator = self.draws(f"batch {index}")
        on = self.on(rows, generator)
        coefficients = on * (0.5 + torch.rand(on.shape, generator=generator))
        x = coefficients @ self.directions()
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator)
        return PlantedBatch(x, coefficients)


def require(holds: bool, message: str) -> None:
    """Refuse a field that cannot work.

    Raises:
        UsageError: With the message.
    """
    if not holds:
        raise UsageError(f"planted data: {message}")
