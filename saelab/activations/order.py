"""The random order of a stream: blocks of rows are permuted, and rows within pools of blocks."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

from saelab_kernels.shapes import Tensor


class RowOrder:
    """Maps positions of an endless stream to rows.

    Args:
        n_rows: Rows in all.
        seed: Decides all permutations.
        block_rows: Rows that are read together.
        pool_rows: Rows of a pool, approximately: pools are whole blocks, and all about equal in size.
    """

    def __init__(self, n_rows: int, seed: int, block_rows: int, pool_rows: int) -> None:
        self.n_rows, self.seed, self.block_rows = n_rows, seed, block_rows
        self.n_blocks = -(-n_rows // block_rows)
        wanted = -(-n_rows // max(pool_rows, block_rows))
        # A small last pool would mix badly.
        self.edges = np.arange(wanted + 1) * self.n_blocks // wanted
        self._epoch: tuple[int, Tensor, NDArray[np.int64]] | None = None

    @property
    def pools_per_epoch(self) -> int:
        """Number of pools that make up one pass over the rows."""
        return len(self.edges) - 1

    @property
    def max_pool_rows(self) -> int:
        """Most rows that a pool can have."""
        return int(np.diff(self.edges).max()) * self.block_rows

    def find(self, cursor: int) -> tuple[int, int]:
        """Return which pool holds a row of the stream, counted over all epochs, and the place in it."""
        epoch, offset = divmod(cursor, self.n_rows)
        _, pool_ends = self._of_epoch(epoch)
        pool = int(np.searchsorted(pool_ends, offset, side="right"))
        before = int(pool_ends[pool - 1]) if pool else 0
        return epoch * self.pools_per_epoch + pool, offset - before

    def pool(self, number: int) -> tuple[list[tuple[int, int]], Tensor]:
        """Return the stretches of rows that a pool reads, and the order of its rows."""
        epoch, pool = divmod(number, self.pools_per_epoch)
        blocks, _ = self._of_epoch(epoch)
        chosen = blocks[int(self.edges[pool]) : int(self.edges[pool + 1])].tolist()
        spans = [(b * self.block_rows, min((b + 1) * self.block_rows, self.n_rows)) for b in chosen]
        size = sum(stop - start for start, stop in spans)
        return spans, torch.randperm(size, generator=_generator(self.seed, epoch, pool + 1))

    def _of_epoch(self, epoch: int) -> tuple[Tensor, NDArray[np.int64]]:
        """Return the permuted blocks of an epoch, and where in it each pool ends."""
        known = self._epoch
        if known is None or known[0] != epoch:
            blocks = torch.randperm(self.n_blocks, generator=_generator(self.seed, epoch, 0))
            sizes = np.full(self.n_blocks, self.block_rows, dtype=np.int64)
            sizes[blocks.numpy() == self.n_blocks - 1] -= self.n_blocks * self.block_rows - self.n_rows
            known = self._epoch = (epoch, blocks, np.cumsum(sizes)[self.edges[1:] - 1])
        return known[1], known[2]


def _generator(seed: int, epoch: int, part: int) -> torch.Generator:
    # Hashed, because neighbouring seeds of a Mersenne twister give related sequences.
    digest = hashlib.blake2b(f"{seed},{epoch},{part}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
