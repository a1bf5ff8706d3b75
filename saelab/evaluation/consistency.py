"""How much two dictionaries have in common: cosines of their directions, in tiles that fit into memory.

A dictionary is a matrix of directions, one a row: a decoder `W_dec [d_sae, d_in]`, or planted features. Norms
do not matter, signs do. A row of zeros has cosine 0 with everything.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from saelab.evaluation.matching import maximum_matching
from saelab_kernels.shapes import Bool, Float, Int, Tensor

TILE_BYTES = 64 * 2**20
"""Cosines that are in memory at once, about."""


def max_cosines(
    a: Float[Tensor, "d_sae_a d_in"],
    b: Float[Tensor, "d_sae_b d_in"],
    *,
    alive_a: Bool[Tensor, " d_sae_a"] | None = None,
    alive_b: Bool[Tensor, " d_sae_b"] | None = None,
) -> Float[Tensor, " n_alive_a"]:
    """Return for each direction of ``a`` its largest cosine with a direction of ``b``, float32, on the device of ``a``.

    This is the maximum cosine similarity (MCS) of the papers: several directions may have the same partner.

    Args:
        a: One dictionary.
        b: The other.
        alive_a: Which directions of ``a`` to look at, in their order; all where not given.
        alive_b: Which directions of ``b`` may be partners.

    Returns:
        As many values as directions of ``a`` are looked at; 0 where ``b`` has none.
    """
    a, b = _unit_rows(a, alive_a), _unit_rows(b, alive_b)
    if not len(b):
        return a.new_zeros(len(a))
    return torch.cat([a.new_zeros(0), *(cosines.amax(1) for cosines in _tiles(a, b))])


def partners(
    a: Float[Tensor, "rows_a d_in"], b: Float[Tensor, "rows_b d_in"], threshold: float = 0.9
) -> Int[Tensor, " rows_a"]:
    """Match directions one-to-one, as many pairs with a cosine above ``threshold`` as there can be.

    The number of pairs is exact: a largest matching of the graph of all such pairs (derived). It starts from each
    direction's best partner, the best pairs first, and changes these only where that makes more pairs.
    A greedy matching alone can miss up to half of them. Memory: one bit for each pair of rows.

    Returns:
        int64, the row of ``b`` for each row of ``a``, -1 where it has no partner; on the CPU.

    Raises:
        ValueError: The threshold is not in [0, 1): a direction of zeros would have partners.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"partners: the threshold is {threshold}; it must be in [0, 1)")
    if not len(a) or not len(b):
        return torch.full((len(a),), -1)
    packed, best, column = [], [], []
    for cosines in _tiles(_unit_rows(a), _unit_rows(b)):
        largest = cosines.max(1)
        packed.append(np.packbits((cosines > threshold).cpu().numpy(), axis=1))
        best.append(largest.values)
        column.append(largest.indices)
    start = _best_first(torch.cat(best).cpu(), torch.cat(column).cpu(), threshold)
    return torch.from_numpy(maximum_matching(np.concatenate(packed), len(b), start.numpy()))


def partnered_share(
    a: Float[Tensor, "d_sae_a d_in"],
    b: Float[Tensor, "d_sae_b d_in"],
    threshold: float = 0.9,
    *,
    alive_a: Bool[Tensor, " d_sae_a"] | None = None,
    alive_b: Bool[Tensor, " d_sae_b"] | None = None,
) -> float:
    """Return the share of the directions of ``a`` with a partner of their own in ``b``; see `partners`.

    Args:
        a: One dictionary; the share is of its (alive) directions, so it is not symmetric where the numbers differ.
        b: The other.
        threshold: The cosine must be larger.
        alive_a: Directions of ``a`` that count; all where not given.
        alive_b: Directions of ``b`` that may be partners.

    Returns:
        From 0 to 1; 0 where ``a`` has no direction that counts.
    """
    a, b = _chosen(a, alive_a), _chosen(b, alive_b)
    return int((partners(a, b, threshold) >= 0).sum()) / max(len(a), 1)


def _chosen(rows: Tensor, alive: Tensor | None) -> Tensor:
    return rows if alive is None else rows[alive.to(rows.device)]


def _unit_rows(rows: Tensor, alive: Tensor | None = None) -> Tensor:
    """Return chosen rows scaled to unit norm, float32; scaled by their largest entry first, so that none underflows."""
    rows = _chosen(rows.detach(), alive).float()
    tiny = torch.finfo(torch.float32).tiny
    rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(tiny)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(tiny)


def _tiles(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Yield the cosines of successive unit rows of ``a`` with all of ``b``."""
    height = max(1, TILE_BYTES // (4 * len(b)))
    for start in range(0, len(a), height):
        yield a[start : start + height] @ b.to(a.device).T


def _best_first(best: Tensor, column: Tensor, threshold: float) -> Tensor:
    """Give each row its best column, the largest cosine first, where the column is still free."""
    found, taken = torch.full((len(best),), -1), set[int]()
    order = best.argsort(descending=True, stable=True)
    for row in order[best[order] > threshold].tolist():
        if (partner := int(column[row])) not in taken:
            taken.add(partner)
            found[row] = partner
    return found
