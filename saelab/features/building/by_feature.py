"""The second step: the same pairs ordered by feature, so that everything about one feature is read in one piece.

For each code shard there is a file with the pairs sorted by feature, inside a feature by token. Features are then
taken in consecutive groups that together have no more than a few million pairs; a group gathers its pieces from all
shards. Memory depends on the size of a group, or of the densest feature, not on the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saelab.errors import DamagedFileError, Interrupted
from saelab.features.building.corpus import Stretch
from saelab.features.codes import read_shard, shard_name
from saelab.interrupts import StopRequest
from saelab.progress import Progress
from saelab.storage.tensors import TensorFile, write_tensors

GROUP_PAIRS = 2**23
"""Pairs of a group of features, unless one feature alone has more."""
GROUP_FEATURES = 2048
"""Features of a group at most."""


@dataclass(frozen=True)
class Firings:
    """Where one feature is active: activation rows in the order of the corpus, and how strongly."""

    feature: int
    """Index of the feature."""
    rows: NDArray[np.int64]
    """Numbers of activation rows (kept tokens of the corpus), ascending."""
    values: NDArray[np.float32]
    """Activations, above 0."""


def write_by_feature(
    codes: Path, work: Path, n_shards: int, d_sae: int, stop: StopRequest, *, quiet: bool = False
) -> None:
    """Sort every shard by feature, those that are not there yet.

    Raises:
        Interrupted: A stop was asked for; what is done is kept.
    """
    missing = [number for number in range(n_shards) if not _is_there(work / shard_name(number), d_sae)]
    with Progress("sorting", n_shards, "shards", done=n_shards - len(missing), quiet=quiet) as progress:
        for number in missing:
            if stop.requested:
                raise Interrupted("stopped while sorting; the same command goes on with what is there")
            code = read_shard(codes / shard_name(number), d_sae).code
            order = code.feature_major()
            write_tensors(
                work / shard_name(number),
                {"offsets": order.offsets, "rows": order.rows.int(), "values": code.values[order.order]},
            )
            progress.advance(1)


def _is_there(path: Path, d_sae: int) -> bool:
    if not path.exists():
        return False
    try:
        with TensorFile(path) as file:
            return file.shape("offsets") == (d_sae + 1,)
    except DamagedFileError:
        return False


class ByFeature:
    """Reads the sorted shards.

    Args:
        work: Folder that `write_by_feature` filled.
        stretches: Of the corpus, one for each shard.
        d_sae: Number of features.
    """

    def __init__(self, work: Path, stretches: Sequence[Stretch], d_sae: int) -> None:
        self.d_sae = d_sae
        self._files = [TensorFile(work / shard_name(number)) for number in range(len(stretches))]
        self._offsets = [file.read("offsets").numpy() for file in self._files]
        self._first_rows = [stretch.first_row for stretch in stretches]
        self.counts: NDArray[np.int64] = sum(
            (np.diff(offsets) for offsets in self._offsets), np.zeros(d_sae, dtype=np.int64)
        )
        """Tokens on which each feature is active."""

    def groups(self) -> list[range]:
        """Cut the features into consecutive groups; the same counts give the same groups."""
        found, first, pairs = [], 0, 0
        for feature, count in enumerate(self.counts.tolist()):
            full = pairs + count > GROUP_PAIRS or feature - first == GROUP_FEATURES
            if feature > first and full:
                found.append(range(first, feature))
                first, pairs = feature, 0
            pairs += count
        found.append(range(first, self.d_sae))
        return found

    def firings(self, group: range) -> Iterator[Firings]:
        """Yield each feature of a group with all of its firings."""
        counts = self.counts[group.start : group.stop]
        ends = np.cumsum(counts)
        rows = np.empty(int(ends[-1]), dtype=np.int64)
        values = np.empty(len(rows), dtype=np.float32)
        filled = ends - counts
        for file, offsets, first_row in zip(self._files, self._offsets, self._first_rows, strict=True):
            inside = offsets[group.start : group.stop + 1]
            here = np.diff(inside)
            start, stop = int(inside[0]), int(inside[-1])
            place = np.repeat(filled - (inside[:-1] - start), here) + np.arange(stop - start)
            rows[place] = _numpy(file.read_rows("rows", start, stop)) + first_row
            values[place] = _numpy(file.read_rows("values", start, stop))
            filled = filled + here
        for feature, end, count in zip(group, ends.tolist(), counts.tolist(), strict=True):
            yield Firings(feature, rows[end - count : end], values[end - count : end])

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> ByFeature:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    return tensor.numpy()
