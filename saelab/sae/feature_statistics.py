"""How often and how strongly each feature fires."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Float, Int, Tensor


@dataclass(frozen=True)
class FeatureStatistics:
    """Per-feature statistics over a number of tokens. A feature fired on a token when its value is > 0."""

    n_tokens: int
    """Tokens that were seen."""
    count: Int[Tensor, " d_sae"]
    """Tokens on which the feature fired, int64."""
    total: Float[Tensor, " d_sae"]
    """Sum of its activations, float64."""
    maximum: Float[Tensor, " d_sae"]
    """Its largest activation, float32; 0 where it never fired."""

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of tokens on which the feature fired, float64; 0 for no tokens."""
        return self.count.double() / max(self.n_tokens, 1)

    @property
    def mean_active(self) -> Float[Tensor, " d_sae"]:
        """Mean activation over the tokens on which it fired, float64; 0 where it never did."""
        return self.total / self.count.clamp_min(1)

    def named(self) -> dict[str, Tensor]:
        """Return the tensors that are saved beside the weights."""
        return {
            "count": self.count,
            "density": self.density.float(),
            "mean_active": self.mean_active.float(),
            "max_active": self.maximum,
        }


class FeatureAccumulator:
    """Sums feature statistics over codes, in the order in which they come."""

    def __init__(self, d_sae: int) -> None:
        self._n_tokens = 0
        self._count = torch.zeros(d_sae, dtype=torch.int64)
        self._total = torch.zeros(d_sae, dtype=torch.float64)
        self._maximum = torch.zeros(d_sae, dtype=torch.float32)

    def add(self, code: SparseCode) -> None:
        """Count the features of some more tokens."""
        columns, values = code.columns.reshape(-1).long().cpu(), code.values.reshape(-1).float().cpu()
        fired = values > 0
        columns, values = columns[fired], values[fired]
        self._n_tokens += code.n_rows
        self._count.index_add_(0, columns, torch.ones_like(columns))
        self._total.index_add_(0, columns, values.double())
        self._maximum.scatter_reduce_(0, columns, values, reduce="amax")

    def result(self) -> FeatureStatistics:
        """Return the statistics of all tokens so far."""
        return FeatureStatistics(
            self._n_tokens, self._count.clone(), self._total.clone(), self._maximum.clone()
        )
