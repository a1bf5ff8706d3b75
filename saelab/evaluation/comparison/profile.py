"""What one SAE does token by token and feature by feature: what the figures of a comparison show beside the metrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelab.activations.store import Store
from saelab.evaluation.autoencoder import Autoencoder, reconstruct_tile, tiles
from saelab.evaluation.places import Places, read_rows
from saelab.evaluation.tokens import EvaluatedTokens
from saelab.sae.feature_statistics import FeatureAccumulator
from saelab.sae.zipf import ZipfFit, fit_zipf
from saelab_kernels.shapes import Float, Int, Tensor

LONGEST_CURVE = 1000
"""Densities that are kept for a figure; ranks are thinned evenly in their logarithm."""


@dataclass(frozen=True)
class Measured:
    """One SAE on the evaluated tokens, in full."""

    active: Int[Tensor, " tokens"]
    """Active features (value > 0) of each token, int64."""
    squared_error: Float[Tensor, " tokens"]
    """|x - x_hat|^2 of each token, float64."""
    densities: Float[Tensor, " d_sae"]
    """Share of the tokens on which each feature fired, float64."""


@dataclass(frozen=True, kw_only=True)
class DensityCurve:
    """Densities of features by rank, from the densest, with the Zipf curve that fits them."""

    ranks: tuple[int, ...]
    """Ranks from 1, thinned; features that never fired have none."""
    densities: tuple[float, ...]
    """Share of the tokens on which the feature of that rank fired."""
    zipf: ZipfFit | None
    """The curve; None where too few features fired."""


def measure(
    sae: Autoencoder,
    store: Store,
    chosen: EvaluatedTokens,
    *,
    tile: int,
) -> Measured:
    """Encode and decode the evaluated tokens; a token's numbers do not depend on the others.

    Args:
        sae: Computes on the device where its weights are.
        store: Activations of all that it reads and reconstructs.
        chosen: Which of the held-out tokens.
        tile: Tokens that the SAE sees at once.
    """
    features, places = FeatureAccumulator(sae.config.d_sae), Places.of_sae(sae.config)
    active, errors = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.float64)]
    for piece in tiles(chosen.n_tokens, tile):
        rows = read_rows(store, places, "heldout", piece.start, piece.stop)
        x_hat, code = reconstruct_tile(sae, rows.x.to(sae.W_dec.device), tile)
        errors.append((rows.target.double() - x_hat.cpu().double()).square().sum(1))
        active.append(code.l0().long().cpu())
        features.add(code)
    return Measured(torch.cat(active), torch.cat(errors), features.result().density)


def squared_deviations(
    store: Store, hooks: tuple[str, ...], chosen: EvaluatedTokens, *, tile: int
) -> Float[Tensor, " tokens"]:
    """Return |x - mean x|^2 of each evaluated token, float64, the mean being that of all of them.

    Args:
        store: Holds the activations.
        hooks: Module paths whose activations, side by side, are x: what is reconstructed.
        chosen: Which of the held-out tokens.
        tile: Tokens that are read at once.
    """
    places = Places(hooks, hooks)
    total = torch.zeros(sum(store.hook(hook).d_in for hook in hooks), dtype=torch.float64)
    pieces = list(tiles(chosen.n_tokens, tile))
    for piece in pieces:
        total += read_rows(store, places, "heldout", piece.start, piece.stop).x.double().sum(0)
    mean = total / max(chosen.n_tokens, 1)
    found = [torch.zeros(0, dtype=torch.float64)]
    for piece in pieces:
        x = read_rows(store, places, "heldout", piece.start, piece.stop).x.double()
        found.append((x - mean).square().sum(1))
    return torch.cat(found)


def active_histogram(active: Int[Tensor, " tokens"]) -> tuple[int, ...]:
    """Return how many tokens have 0, 1, 2, ... active features, up to the largest number that occurs."""
    return tuple(torch.bincount(active).tolist())


def density_curve(densities: Float[Tensor, " d_sae"]) -> DensityCurve:
    """Order densities from the largest, thin the ranks for a figure, and fit the Zipf curve to all of them."""
    falling = densities.sort(descending=True).values
    n_fired = int((falling > 0).sum())
    if n_fired <= LONGEST_CURVE:
        ranks = list(range(1, n_fired + 1))
    else:
        spaced = torch.logspace(0, 1, LONGEST_CURVE, base=n_fired, dtype=torch.float64)
        ranks = sorted({min(int(rank), n_fired) for rank in spaced.round()})
    return DensityCurve(
        ranks=tuple(ranks),
        densities=tuple(falling[rank - 1].item() for rank in ranks),
        zipf=fit_zipf(densities),
    )
