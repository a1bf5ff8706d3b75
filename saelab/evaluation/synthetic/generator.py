"""Features that are on independently and equally often, and exactly so many of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelab.evaluation.synthetic.planted import Planted, PlantedBatch, SparseSums, require
from saelab_kernels.shapes import Bool, Float, Tensor


@dataclass(frozen=True, kw_only=True)
class PlantedFeatures(SparseSums):
    """Every feature is on independently with probability ``mean_active / n_features``; **test recovery with this**."""

    def frequencies(self) -> Float[Tensor, " n_features"]:
        share = self.mean_active / self.n_features
        return torch.full((self.n_features,), share, dtype=torch.float64)

    def on(self, rows: int, generator: torch.Generator) -> Bool[Tensor, "rows n_features"]:
        return torch.rand(rows, self.n_features, generator=generator) < self.mean_active / self.n_features


@dataclass(frozen=True, kw_only=True)
class ExactlyPlantedFeatures(Planted):
    """Exactly s features a row, coefficients 1, unit-norm rows; **only to replicate published GBA tables**.

    With a constant number of equal coefficients, the data are explained equally well after any
    shift, ``x = b + sum h_i (v_i - b / sum h)``: a dictionary with a trained decoder bias cannot
    find the directions (derived; measured: 8.6 % at cosine 0.9 with a trained bias, 99.2 % without).
    """

    active: tuple[int, ...] = (3, 20)
    """Numbers of features that are on; row i of a batch takes entry ``i mod len(active)``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.active) and all(1 <= count <= self.n_features for count in self.active),
            f"active is {self.active}; every count must be in [1, {self.n_features}]",
        )

    def frequencies(self) -> Float[Tensor, " n_features"]:
        share = sum(self.active) / len(self.active) / self.n_features
        return torch.full((self.n_features,), share, dtype=torch.float64)

    def batch(self, index: int, rows: int) -> PlantedBatch:
        generator = self.draws(f"batch {index}")
        order = torch.rand(rows, self.n_features, generator=generator).argsort(1)
        counts = torch.tensor(self.active)[torch.arange(rows) % len(self.active)]
        on = torch.arange(self.n_features) < counts[:, None]
        coefficients = torch.zeros(rows, self.n_features).scatter_(1, order, on.float())
        x = coefficients @ self.directions()
        return PlantedBatch(x / x.norm(dim=1, keepdim=True), coefficients)
