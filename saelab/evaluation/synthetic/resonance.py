"""Neuron resonance: single neurons find planted features only at activation frequencies near the features' own."""

from __future__ import annotations

from typing import NamedTuple

import torch

from saelab.evaluation.consistency import max_cosines
from saelab.evaluation.synthetic.generator import ExactlyPlantedFeatures
from saelab_kernels.shapes import Float, Tensor


class Resonance(NamedTuple):
    """What neurons with one activation frequency found."""

    mean_cosine: float
    """Mean over neurons of the best cosine with a planted direction."""
    recovered: float
    """Share of the planted directions with a neuron at a cosine above 0.9."""


def resonance(
    planted: ExactlyPlantedFeatures,
    frequency: float,
    *,
    n_neurons: int = 256,
    iterations: int = 60,
    rows: int = 8192,
    seed: int = 0,
) -> Resonance:
    """Run independent neurons by thresholded power iteration at a fixed activation frequency.

    `w <- normalise(mean(2 (w.x) 1[w.x > theta] x))` with `theta` the (1 - frequency)-quantile of `w.x`
    over the batch: the limit of bias adaptation for a vanishing output scale, in which neurons do not
    see one another (derived from Chen et al. 2025, arXiv 2506.14002). Since they do not repel each
    other, ``recovered`` is at most about `1 - exp(-n_neurons / n_features)`.

    Args:
        planted: Its rows are centred with their true mean and scaled to unit norm again.
        frequency: Share of the rows on which each neuron is active, in (0, 1).
        n_neurons: Neurons, from random unit directions.
        iterations: Steps, each on a batch of its own.
        rows: Rows in a batch.
        seed: Of the neurons' first directions.
    """
    directions = planted.directions()
    centre = planted.frequencies().float() @ directions
    generator = torch.Generator().manual_seed(seed)
    w = torch.nn.functional.normalize(torch.randn(n_neurons, planted.d_in, generator=generator))
    n_active = max(1, round(frequency * rows))
    for index in range(iterations):
        x = _centred(planted.batch(index, rows).coefficients @ directions - centre)
        w = _iterate(w, x, n_active)
    best = max_cosines(w, directions)
    recovered = (max_cosines(directions, w) > 0.9).double().mean()
    return Resonance(float(best.double().mean()), float(recovered))


def _centred(x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
    return x / x.norm(dim=1, keepdim=True)


def _iterate(
    w: Float[Tensor, "neurons d_in"], x: Float[Tensor, "rows d_in"], n_active: int
) -> Float[Tensor, "neurons d_in"]:
    y, rows = (w @ x.T).topk(n_active, dim=1)
    if n_active * 8 < x.shape[0]:  # few rows: gather them
        moved = torch.einsum("mk,mkd->md", y, x[rows])
    else:
        moved = torch.zeros(w.shape[0], x.shape[0]).scatter_(1, rows, y) @ x
    return torch.nn.functional.normalize(moved)
