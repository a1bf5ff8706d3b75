"""Features that are active on the same tokens, from a sample of each feature's active tokens.

The exact matrix costs tokens times L0 squared. Instead up to 512 active tokens of a feature are drawn, their codes are
read, and every other feature is counted: `p_other` has a standard error of at most 0.022. Others are ranked by phi,

    phi = (p_ij - p_i p_j) / sqrt(p_i (1 - p_i) p_j (1 - p_j)),    p_ij = p_i p_other,

the correlation of the two firings, with exact densities p_i and p_j (the ranking is ours). It puts a rare partner
that is always there before a dense one that is everywhere. Partners seen on fewer than 5 of the tokens are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saelab.features.building.by_feature import Firings
from saelab.features.building.corpus import Stretch
from saelab.features.building.draw import lots, smallest
from saelab.features.codes import shard_name
from saelab.storage.tensors import TensorFile

LEAST_TOGETHER = 5
PURPOSE = 100
"""Of the draw: another one than those of the examples."""


@dataclass(frozen=True)
class Companions:
    """What is active together with one feature, strongest phi first."""

    others: NDArray[np.int64]
    n_sampled: int
    n_both: NDArray[np.int64]
    p_other: NDArray[np.float64]
    lift: NDArray[np.float64]
    phi: NDArray[np.float64]


class CodeRows:
    """Reads the codes of single tokens from the shards.

    Args:
        codes: Folder of the shards.
        stretches: Of the corpus, one for each shard.
    """

    def __init__(self, codes: Path, stretches: Sequence[Stretch]) -> None:
        self._files = [TensorFile(codes / shard_name(number)) for number in range(len(stretches))]
        self._columns = [file.mapped("columns") for file in self._files]
        self._offsets = [file.mapped("row_offsets") for file in self._files]
        self._ends = np.array([stretch.last_row for stretch in stretches], dtype=np.int64)
        self._starts = np.array([stretch.first_row for stretch in stretches], dtype=np.int64)

    def columns(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the active features of some activation rows, one after the other."""
        found = []
        shards = np.searchsorted(self._ends, rows, side="right")
        for shard in np.unique(shards).tolist():
            local = rows[shards == shard] - self._starts[shard]
            first, last = self._offsets[shard][local], self._offsets[shard][local + 1]
            sizes = last - first
            place = np.repeat(first - np.cumsum(sizes) + sizes, sizes) + np.arange(int(sizes.sum()))
            found.append(self._columns[shard][place])
        return np.concatenate(found).astype(np.int64) if found else np.empty(0, dtype=np.int64)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def companions(
    firings: Firings,
    codes: CodeRows,
    counts: NDArray[np.int64],
    n_kept: int,
    *,
    n: int,
    samples: int,
    seed: int,
) -> Companions:
    """Return the features that are most often active where one feature is.

    Args:
        firings: Of the feature.
        codes: Of all kept tokens.
        counts: Firings of every feature, ``[d_sae]``.
        n_kept: Kept tokens.
        n: How many are returned at most.
        samples: Active tokens that are looked at, at most.
        seed: Of the draw.
    """
    draws = lots(seed, PURPOSE, firings.feature, firings.rows)
    rows = np.sort(firings.rows[smallest(draws, samples)])
    together = np.bincount(codes.columns(rows), minlength=len(counts))
    together[firings.feature] = 0
    others = np.flatnonzero(together >= LEAST_TOGETHER)
    n_both = together[others]
    p_own, p_others = len(firings.rows) / n_kept, counts[others] / n_kept
    p_other = n_both / max(len(rows), 1)
    spread = np.sqrt(p_own * (1 - p_own) * p_others * (1 - p_others))
    phi = np.divide(p_own * (p_other - p_others), spread, out=np.zeros(len(others)), where=spread > 0)
    order = np.argsort(-phi, kind="stable")
    order = order[phi[order] > 0][:n]
    return Companions(
        others[order],
        len(rows),
        n_both[order],
        p_other[order],
        p_other[order] / p_others[order],
        np.minimum(phi[order], 1.0),
    )
