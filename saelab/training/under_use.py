"""Which features fire less often than the Zipf curve of all densities expects of their rank."""

from __future__ import annotations

import torch

from saelab.sae.zipf import fit_zipf
from saelab.training.recipes.moments import State
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Float, Tensor

FIRED, WATCHED, SHORTFALL = "fired", "watched", "shortfall"
LEAST_EXPECTED = 30.0
"""Firings that the curve must expect of a feature before it is judged: a window of at least 30 / q* tokens."""
SIGNIFICANCE = 0.01
"""Largest probability that a feature which follows the curve fires so seldom."""


def new_counts(d_sae: int) -> State:
    """Return counts of zero: firings of each feature, tokens over which they are counted, and its shortfall."""
    return {
        FIRED: torch.zeros(d_sae, dtype=torch.int64),
        WATCHED: torch.zeros(d_sae, dtype=torch.int64),
        SHORTFALL: torch.zeros(d_sae),
    }


def count(state: State, code: SparseCode) -> None:
    """Count a batch, in place and without waiting for the device."""
    state[FIRED] += code.firing_counts()
    state[WATCHED] += code.n_rows


def expected_densities(state: State) -> Float[Tensor, " d_sae"] | None:
    """Return what the fitted Zipf curve gives each feature at its rank by counted density, float64 on the host.

    Features of equal density rank by their number; None where too few fired for a curve.
    """
    densities = state[FIRED].cpu().double() / state[WATCHED].cpu().clamp_min(1)
    curve = fit_zipf(densities)
    if curve is None:
        return None
    ranks = torch.empty(len(densities), dtype=torch.int64)
    ranks[densities.argsort(descending=True, stable=True)] = torch.arange(1, len(densities) + 1)
    return curve.expected(ranks)


def judge(state: State, expected: Float[Tensor, " d_sae"], kappa: float) -> State:
    """Return the state after judging every feature of which enough was expected; its counting starts anew.

    A feature that fired n times in t tokens, where ``L = q* t`` firings were expected, is under-used where
    `n < kappa L` and a Poisson count of mean L is at most n with a probability below 1 %. Its shortfall is then
    `1 - n / L`, else 0. Features with ``L < 30`` keep their shortfall and are counted on.

    Args:
        state: Counts.
        expected: q*, the expected density of each feature.
        kappa: Share of the expected firings below which a feature can be under-used.
    """
    fired, mean = state[FIRED].cpu().double(), expected * state[WATCHED].cpu()
    ready = mean >= LEAST_EXPECTED
    chance = torch.special.gammaincc(fired + 1, mean.clamp_min(LEAST_EXPECTED))  # P(Poisson(mean) <= fired)
    under_used = (fired < kappa * mean) & (chance < SIGNIFICANCE)
    shortfall = torch.where(under_used, 1 - fired / mean.clamp_min(LEAST_EXPECTED), 0.0)
    device = state[FIRED].device
    ready, shortfall = ready.to(device), shortfall.float().to(device)
    return state | {
        FIRED: state[FIRED].masked_fill(ready, 0),
        WATCHED: state[WATCHED].masked_fill(ready, 0),
        SHORTFALL: torch.where(ready, shortfall, state[SHORTFALL]),
    }
