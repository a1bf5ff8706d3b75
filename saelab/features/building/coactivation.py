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

from saelab.features.building.corpus import Corpus, Stretch
from saelab.features.codes import shard_name
from saelab.storage.tensors import TensorFile

LEAST_TOGETHER = 5


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
    """Reads the codes of single tokens from shards that hold them, and perhaps not all others.

    Args:
        codes: Folder of the shards.
        corpus: What they are codes of.
        stretches: Of the corpus, one for each shard.
    """

    def __init__(self, codes: Path, corpus: Corpus, stretches: Sequence[Stretch]) -> None:
        self._files = [TensorFile(codes / shard_name(number)) for number in range(len(stretches))]
        self._columns = [file.mapped("columns") for file in self._files]
        self._offsets = [file.mapped("row_offsets") for file in self._files]
        self._tokens = [file.mapped("token_index") for file in self._files]
        self._ends = corpus.row_starts[[stretch.last_sequence for stretch in stretches]]

    def columns(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the active features of some token positions, one after the other."""
        found = []
        shards = np.searchsorted(self._ends, positions, side="right")
        for shard in np.unique(shards).tolist():
            local = np.searchsorted(self._tokens[shard], positions[shards == shard])
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
    feature: int,
    sampled: NDArray[np.int64],
    codes: CodeRows,
    counts: NDArray[np.int64],
    n_kept: int,
    n: int,
) -> Companions:
    """Return the features that are most often active where one feature is.

    Args:
        feature: Index of the feature.
        sampled: Token positions that were drawn of those where it is active.
        codes: Of these tokens.
        counts: Firings of every feature, ``[d_sae]``.
        n_kept: Kept tokens.
        n: How many are returned at most.
    """
    together = np.bincount(codes.columns(np.sort(sampled)), minlength=len(counts))
    together[feature] = 0
    others = np.flatnonzero(together >= LEAST_TOGETHER)
    n_both = together[others]
    p_own, p_others = counts[feature] / n_kept, counts[others] / n_kept
    p_other = n_both / max(len(sampled), 1)
    spread = np.sqrt(p_own * (1 - p_own) * p_others * (1 - p_others))
    phi = np.divide(p_own * (p_other - p_others), spread, out=np.zeros(len(others)), where=spread > 0)
    order = np.argsort(-phi, kind="stable")
    order = order[phi[order] > 0][:n]
    return Companions(
        others[order],
        len(sampled),
        n_both[order],
        p_other[order],
        p_other[order] / p_others[order],
        np.minimum(phi[order], 1.0),
    )
