"""Which features are worth showing first: those that a person can read at a glance."""

from __future__ import annotations

import torch

from saelab.activations.store import Store, StoredHook
from saelab.evaluation.autoencoder import Autoencoder
from saelab.evaluation.examples import Firings, find_firings
from saelab.text.documents import Split
from saelab_kernels.shapes import Float, Int, Tensor

DENSITIES = (5e-4, 2e-2)
"""Rarer features have too few examples to judge, denser ones are seldom about one thing."""
MIN_ACTIVE = 8
"""Tokens that a feature must be active on, whatever its density."""
TOKEN_TYPES = 5
"""Token types whose share of the activation says how concentrated a feature is."""


def telling_features(
    sae: Autoencoder,
    store: Store,
    hook: StoredHook,
    *,
    n: int,
    max_rows: int = 65_536,
    split: Split = "heldout",
) -> list[int]:
    """Choose ``n`` features that are easy to read; fewer where fewer qualify.

    The rule, a heuristic of ours: of the features with a density in [5e-4, 2e-2] and at least 8
    active tokens, rank by concentration, the share of a feature's total activation that falls on
    its five strongest token types (largest first; ties by peakedness, maximum / mean activation,
    then by index), and take at most one feature for each strongest token type, so that the choice
    shows different things. A feature that fires before something, rather than on it, is spread over
    token types and ranks low: this is a choice of clear examples, not a verdict on the others.

    Args:
        sae: The SAE.
        store: Its activations, with tokens.
        hook: Where the SAE reads.
        n: How many.
        max_rows: Kept tokens to look through at most, in whole sequences.
        split: Which documents to look through.
    """
    firings = find_firings(sae, store, hook, max_rows=max_rows, split=split)
    if firings.n_tokens == 0:
        return []
    token_type = torch.from_numpy(store.tokens[firings.token_index.numpy()].astype("int64"))
    features, concentration, strongest = _concentration(firings, token_type)
    count, total, maximum = _totals(firings, sae.config.d_sae)
    density = count.double() / firings.n_tokens
    peakedness = maximum * count / total.clamp_min(1e-30)
    ranked = sorted(
        (-share, -float(peakedness[feature]), feature, token)
        for feature, share, token in zip(
            features.tolist(), concentration.tolist(), strongest.tolist(), strict=True
        )
        if count[feature] >= MIN_ACTIVE and DENSITIES[0] <= density[feature] <= DENSITIES[1]
    )
    chosen: dict[int, int] = {}
    for _, _, feature, token in ranked:
        if len(chosen) < n:
            chosen.setdefault(token, feature)
    return list(chosen.values())


def _totals(
    firings: Firings, d_sae: int
) -> tuple[Int[Tensor, " d_sae"], Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """Return each feature's number of firings, and sum and maximum of its activations (float64)."""
    values = firings.values.double()
    count = torch.bincount(firings.features, minlength=d_sae)
    total = torch.bincount(firings.features, weights=values, minlength=d_sae)
    maximum = torch.zeros(d_sae, dtype=torch.float64).scatter_reduce_(
        0, firings.features, values, reduce="amax"
    )
    return count, total, maximum


def _concentration(
    firings: Firings, token_type: Int[Tensor, " pairs"]
) -> tuple[Int[Tensor, " active"], Float[Tensor, " active"], Int[Tensor, " active"]]:
    """Return the features that fired, the share of their strongest token types, and the strongest type."""
    n_types = int(token_type.max()) + 1 if len(token_type) else 1
    keys, group = torch.unique(firings.features * n_types + token_type, return_inverse=True)
    mass = torch.bincount(group, weights=firings.values.double(), minlength=len(keys))
    # By feature, then by mass from the largest, then by token id: two stable sorts.
    order = mass.argsort(descending=True, stable=True)
    order = order[(keys // n_types)[order].argsort(stable=True)]
    owner, token, mass = (keys // n_types)[order], (keys % n_types)[order], mass[order]
    features, sizes = torch.unique_consecutive(owner, return_counts=True)
    starts = sizes.cumsum(0) - sizes
    slot = torch.arange(len(features)).repeat_interleave(sizes)
    rank = torch.arange(len(owner)) - starts[slot]
    top = torch.bincount(slot, weights=mass * (rank < TOKEN_TYPES), minlength=len(features))
    return features, top / torch.bincount(slot, weights=mass, minlength=len(features)), token[starts]
