"""Problems and a slow, obvious selection that shares no code with the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Rule


@dataclass(frozen=True)
class Problem:
    """Random tensors of one shape."""

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    target: Tensor

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x, self.W_enc, self.b_enc

    @property
    def z(self) -> Tensor:
        return self.x @ self.W_enc + self.b_enc


@pytest.fixture(scope="session")
def problem():
    """`problem(rows, d_in, d_sae, d_out)` in float64; `whole=True` for small integers with many ties."""

    def make(rows, d_in, d_sae, d_out=None, *, seed=0, dtype=torch.float64, whole=False) -> Problem:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            if whole:
                return torch.randint(-2, 3, shape, generator=generator).to(dtype)
            return torch.randn(*shape, generator=generator, dtype=dtype)

        d_out = d_in if d_out is None else d_out
        W_enc = draw(d_sae, d_in).t()
        return Problem(draw(rows, d_in), W_enc, draw(d_sae), draw(d_sae, d_out), draw(rows, d_out))

    return make


def naive_mask(
    score: Tensor, rule: Rule, budgets: Tensor | None = None, theta: Tensor | None = None
) -> Tensor:
    """The kept set by sorting Python tuples: falling score, then row, then column; positive scores only."""
    pairs = [(-s, r, c) for r, row in enumerate(score.tolist()) for c, s in enumerate(row) if s > 0]
    if isinstance(rule, PerToken):
        limits = [rule.k] * len(score) if budgets is None else budgets.tolist()
        kept = [p for r in range(score.shape[0]) for p in sorted(q for q in pairs if q[1] == r)[: limits[r]]]
    elif isinstance(rule, PerBatch):
        kept = sorted(pairs)[: round(rule.k * score.shape[0])]
    elif isinstance(rule, PerFeature):
        limits = budgets.tolist()
        kept = [p for c in range(score.shape[1]) for p in sorted(q for q in pairs if q[2] == c)[: limits[c]]]
    else:
        limits = theta.expand(score.shape[1]).tolist()
        kept = [p for p in pairs if -p[0] > limits[p[2]]]
    mask = torch.zeros(score.shape, dtype=torch.bool)
    for _, row, column in kept:
        mask[row, column] = True
    return mask


@pytest.fixture(scope="session")
def naive():
    return naive_mask
