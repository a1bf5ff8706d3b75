"""Whether training again with another seed finds the same features."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from saelab.evaluation.consistency import max_cosines, partnered_share
from saelab_kernels.shapes import Bool, Float, Tensor

THRESHOLD = 0.9
"""Features of two seeds are partners when the cosine of their directions is larger."""
GRID = tuple(index / 50 for index in range(51))
"""Cosines at which the share of features is kept for a figure."""


@dataclass(frozen=True)
class Dictionary:
    """The features of one seed."""

    W_dec: Float[Tensor, "d_sae d_out"]
    """Directions, one a row."""
    alive: Bool[Tensor, " d_sae"]
    """Those that fired on the evaluated tokens; the others are left out."""


@dataclass(frozen=True, kw_only=True)
class SeedConsistency:
    """How much the SAEs of one setting have in common, over all ordered pairs of seeds."""

    setting: str
    """Label of the setting."""
    n_seeds: int
    """SAEs that differ in the seed alone."""
    partnered_share: float
    """Share of the features that have a partner of their own, one to one, at a cosine above 0.9; mean over pairs."""
    low: float
    """The smallest such share of a pair."""
    high: float
    """The largest."""
    cosines: tuple[float, ...]
    """Cosines c from 0 to 1,"""
    share_above: tuple[float, ...]
    """and the share of features whose nearest feature of another seed has a cosine of at least c; mean over pairs."""


def seed_consistency(setting: str, dictionaries: Sequence[Dictionary]) -> SeedConsistency | None:
    """Compare the dictionaries of every pair of seeds; None for fewer than two.

    Args:
        setting: Label of the setting.
        dictionaries: One for each seed, with one ``d_out``.
    """
    if len(dictionaries) < 2:
        return None
    shares, curves = [], []
    grid = torch.tensor(GRID)
    for a, b in itertools.permutations(dictionaries, 2):
        shares.append(partnered_share(a.W_dec, b.W_dec, THRESHOLD, alive_a=a.alive, alive_b=b.alive))
        cosines = max_cosines(a.W_dec, b.W_dec, alive_a=a.alive, alive_b=b.alive).cpu()
        above = (cosines[:, None] >= grid).double().sum(0) / max(len(cosines), 1)
        curves.append(above)
    return SeedConsistency(
        setting=setting,
        n_seeds=len(dictionaries),
        partnered_share=math.fsum(shares) / len(shares),
        low=min(shares),
        high=max(shares),
        cosines=GRID,
        share_above=tuple(torch.stack(curves).mean(0).tolist()),
    )
