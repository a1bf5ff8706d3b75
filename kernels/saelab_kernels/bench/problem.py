"""Data of the benchmark: tokens made of few directions, some of which are far more frequent than others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from saelab_kernels.bench.options import BenchOptions
from saelab_kernels.shapes import Float, Tensor

DIRECTIONS_OF_A_TOKEN = 16
NOISE = 0.1
N_BATCHES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Weights to start from and batches to train on, float32 on the CPU."""

    W_dec: Float[Tensor, "d_sae d_in"]
    """Random rows of norm 1."""
    batches: list[Float[Tensor, "batch d_in"]]

    def write(self, path: Path) -> None:
        """Write the raw float32 of weights and batches, which every worker reads."""
        rows = torch.cat([self.W_dec, *self.batches])
        torch.from_file(str(path), shared=True, size=rows.numel(), dtype=rows.dtype).copy_(rows.view(-1))


def make_problem(options: BenchOptions, n_batches: int = N_BATCHES) -> Problem:
    """Return the problem of these sizes, always the same one.

    A token is the sum of 16 of `d_sae / 2` random directions, drawn by a Zipf law (frequency 1 / rank), with
    uniform weights, and a little noise, so that features fire unequally: at d_in 256, d_sae 8192 and k 32 the most
    frequent one in 25 % of the rows, the thousandth in 0.7 %.
    """
    generator = torch.Generator().manual_seed(0)
    d_in, d_sae = options.d_in, options.d_sae
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    directions = torch.randn(max(1, d_sae // 2), d_in, generator=generator) / d_in**0.5
    frequency = 1 / torch.arange(1, len(directions) + 1, dtype=torch.float32)
    batches = []
    for _ in range(n_batches):
        n = options.batch * DIRECTIONS_OF_A_TOKEN
        picked = torch.multinomial(frequency, n, replacement=True, generator=generator)
        strength = torch.rand(n, generator=generator)
        x = torch.nn.functional.embedding_bag(
            picked.view(options.batch, -1),
            directions,
            per_sample_weights=strength.view(options.batch, -1),
            mode="sum",
        )
        batches.append(x + NOISE * torch.randn(options.batch, d_in, generator=generator) / d_in**0.5)
    return Problem(W_dec, batches)
