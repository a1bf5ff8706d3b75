"""Activations made of known directions: the ground truth that recovery is measured against."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch

from saelab_kernels.shapes import Float, Tensor


class PlantedBatch(NamedTuple):
    """Activations and what they were made of; float32."""

    x: Float[Tensor, "rows d_in"]
    """Activations."""
    coefficients: Float[Tensor, "rows n_features"]
    """How much of each planted direction is in each row (before any scaling to unit norm)."""


@dataclass(frozen=True, kw_only=True)
class PlantedFeatures:
    """Sparse sums of random unit directions; **use this one to test recovery**.

    Every feature is on independently with probability ``mean_active / n_features`` and has a
    coefficient uniform in [0.5, 1.5], so neither the number nor the sum of the coefficients is
    constant and the directions are identifiable even when a decoder bias is trained (measured).
    """

    n_features: int = 128
    """Planted directions."""
    d_in: int = 42
    """Dimensions that they share."""
    mean_active: float = 3.0
    """Mean number of features that are on in a row."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise added to every element."""
    seed: int = 0
    """Decides the directions and, with the index, every batch."""

    def __post_init__(self) -> None:
        if not 0 < self.mean_active <= self.n_features:
            raise ValueError(f"mean_active is {self.mean_active}; it must be in (0, {self.n_features}]")

    def directions(self) -> Float[Tensor, "n_features d_in"]:
        """Return the planted directions: unit-norm Gaussian vectors."""
        return _directions(self.seed, self.n_features, self.d_in)

    def batch(self, index: int, rows: int) -> PlantedBatch:
        """Return batch ``index``, a pure function of the fields, ``index`` and ``rows``."""
        generator = _generator(self.seed, f"batch {index}")
        shape = (rows, self.n_features)
        on = torch.rand(shape, generator=generator) < self.mean_active / self.n_features
        coefficients = on * (0.5 + torch.rand(shape, generator=generator))
        x = coefficients @ self.directions()
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator)
        return PlantedBatch(x, coefficients)


@dataclass(frozen=True, kw_only=True)
class ExactlyPlantedFeatures:
    """Exactly s features a row, coefficients 1, unit-norm rows; **only to replicate published GBA tables**.

    With a constant number of equal coefficients, the data are explained equally well after any
    shift, ``x = b + sum h_i (v_i - b / sum h)``: a dictionary with a trained decoder bias cannot
    find the directions (derived; measured: 8.6 % at cosine 0.9 with a trained bias, 99.2 % without).
    """

    n_features: int = 128
    """Planted directions."""
    d_in: int = 42
    """Dimensions that they share."""
    active: tuple[int, ...] = (3, 20)
    """Numbers of features that are on; row i of a batch takes entry ``i mod len(active)``."""
    seed: int = 0
    """Decides the directions and, with the index, every batch."""

    def __post_init__(self) -> None:
        if not self.active or not all(1 <= count <= self.n_features for count in self.active):
            raise ValueError(f"active is {self.active}; every count must be in [1, {self.n_features}]")

    def directions(self) -> Float[Tensor, "n_features d_in"]:
        """Return the planted directions: unit-norm Gaussian vectors."""
        return _directions(self.seed, self.n_features, self.d_in)

    def batch(self, index: int, rows: int) -> PlantedBatch:
        """Return batch ``index``, a pure function of the fields, ``index`` and ``rows``."""
        generator = _generator(self.seed, f"batch {index}")
        order = torch.rand(rows, self.n_features, generator=generator).argsort(1)
        counts = torch.tensor(self.active)[torch.arange(rows) % len(self.active)]
        on = torch.arange(self.n_features) < counts[:, None]
        coefficients = torch.zeros(rows, self.n_features).scatter_(1, order, on.float())
        x = coefficients @ self.directions()
        return PlantedBatch(x / x.norm(dim=1, keepdim=True), coefficients)


def _directions(seed: int, n_features: int, d_in: int) -> Float[Tensor, "n_features d_in"]:
    rows = torch.randn(n_features, d_in, generator=_generator(seed, "directions"))
    return rows / rows.norm(dim=1, keepdim=True)


def _generator(seed: int, purpose: str) -> torch.Generator:
    # Hashed, so that neighbouring seeds and indices give unrelated streams.
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
