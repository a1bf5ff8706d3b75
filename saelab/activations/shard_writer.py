"""The shards of a store that is being written: which tokens each holds, whether it is there, how one is made."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saelab.activations import layout
from saelab.activations.harvest import Harvester
from saelab.activations.shards import check_shard
from saelab.activations.spec import CacheConfig
from saelab.activations.unfinished import Unfinished, loss_part_name
from saelab.errors import DamagedFileError
from saelab.interrupts import StopRequest
from saelab.lm.hooks import Hookpoint, slug
from saelab.progress import Progress
from saelab.storage.manifest import digest_of_file
from saelab.storage.tensors import TensorFile, write_tensors

PATIENCE_SECONDS = 5.0
"""A shard that is sooner done than this is finished after a stop was asked for."""
_MADE_FROM = "rows_blake2b"
"""Entry of a shard's metadata: digest of the rows of tokens that it was computed from."""


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards of one store. A shard is a fixed range of batches, the same whoever writes it."""

    config: CacheConfig
    out: Path
    harvester: Harvester
    unfinished: Unfinished

    def __len__(self) -> int:
        return -(-self.harvester.n_batches // self.config.batches_per_shard)

    def tokens_of(self, shard: int) -> slice:
        """Return the stretch of the token stream that a shard covers."""
        batches = self._batches_of(shard)
        return slice(self.harvester.tokens_of(batches[0]).start, self.harvester.tokens_of(batches[-1]).stop)

    def n_kept(self, shard: int) -> int:
        """Return how many of a shard's tokens are kept, as far as packing decides."""
        return int(self.harvester.sequences.keep[self.tokens_of(shard)].sum())

    def shard_names(self, shard: int) -> list[str]:
        """Return the names of a shard's files in the finished store, one for each hookpoint."""
        return [layout.shard_name(slug(hookpoint), shard) for hookpoint in self.harvester.hookpoints]

    def is_written(self, shard: int) -> bool:
        """Whether all files of a shard are there whole, made from just these rows of tokens."""
        described = self.unfinished.described(shard)
        try:
            counts = {
                self._rows_in(name, described[name], hookpoint, self._made_from(shard))
                for name, hookpoint in zip(self.shard_names(shard), self.harvester.hookpoints, strict=True)
            }
            if self.config.stores_loss:
                self.unfinished.losses(shard, self.tokens_of(shard))
        except (DamagedFileError, KeyError):
            return False
        return len(counts) == 1

    def token_index(self, shard: int) -> NDArray[np.int64]:
        """Return the token positions of a written shard's rows."""
        with TensorFile(self.out / self.shard_names(shard)[0]) as file:
            return file.read("token_index").numpy()

    def damaged(self, shard: int) -> list[str]:
        """Read a written shard whole and return its files that differ from what was written."""
        described = self.unfinished.described(shard)
        names = [*self.shard_names(shard), loss_part_name(shard)]
        there = [name for name in names if (self.out / name).exists()]
        return [
            name
            for name in there
            if described.get(name, {}).get("blake2b") != digest_of_file(self.out / name)
        ]

    def drop(self, shard: int) -> None:
        """Remove a shard, so that it is written again."""
        self.unfinished.drop(shard, [*self.shard_names(shard), loss_part_name(shard)])

    def write(self, shard: int, bar: Progress, stop: StopRequest) -> bool:
        """Compute a shard and write it; tells whether it was written.

        When a stop is asked for, the shard is finished if that takes no more than `PATIENCE_SECONDS`
        at the pace so far. Otherwise the batches that are done are dropped: what is lost is less than
        one shard, which is little beside a store, and no half shards lie about.
        """
        buffers = _ShardBuffers(self.config, self.harvester.hookpoints, self.n_kept(shard))
        losses = []
        batches, began = self._batches_of(shard), time.monotonic()
        for done, batch in enumerate(batches):
            if stop.requested and not _soon_done(done, len(batches), time.monotonic() - began):
                return False
            harvest = self.harvester.harvest(batch)
            buffers.add(harvest.token_index, harvest.activations, harvest.gradients)
            if harvest.losses is not None:
                losses.append(harvest.losses)
            bar.advance(len(harvest.token_index))
        names = self.shard_names(shard)
        if losses:
            write_tensors(self.out / loss_part_name(shard), {"losses": torch.cat(losses)})
        for name, hookpoint in zip(names, self.harvester.hookpoints, strict=True):
            write_tensors(self.out / name, buffers.tensors(hookpoint), {_MADE_FROM: self._made_from(shard)})
        self.unfinished.record(shard, names + ([loss_part_name(shard)] if losses else []))
        return True

    def _batches_of(self, shard: int) -> range:
        first = shard * self.config.batches_per_shard
        return range(first, min(first + self.config.batches_per_shard, self.harvester.n_batches))

    def _made_from(self, shard: int) -> str:
        """Return the digest of what a shard depends on beside the configuration: its rows and what is kept of them."""
        sequences, stretch, batches = self.harvester.sequences, self.tokens_of(shard), self._batches_of(shard)
        first = batches[0] * self.config.batch_rows
        rows = sequences.row_starts[first : batches[-1] * self.config.batch_rows + self.config.batch_rows + 1]
        parts: list[tuple[np.ndarray, str]] = [
            (rows, "<i8"),
            (sequences.tokens[stretch], "<i4"),
            (sequences.keep[stretch], "u1"),
        ]
        digest = hashlib.blake2b(digest_size=16)
        for array, dtype in parts:
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(array.astype(dtype).tobytes())
        return digest.hexdigest()

    def _rows_in(self, name: str, facts: dict[str, Any], hookpoint: Hookpoint, made_from: str) -> int:
        path = self.out / name
        with TensorFile(path) as file:
            if path.stat().st_size != facts["bytes"] or file.metadata.get(_MADE_FROM) != made_from:
                raise DamagedFileError(f"{path} was made from other tokens than this text gives")
            n_rows = file.shape("token_index")[0]
            check_shard(file, hookpoint.d_in, self.config.dtype, self.config.gradients, n_rows)
            return n_rows


def _soon_done(done: int, total: int, seconds: float) -> bool:
    return done > 0 and seconds / done * (total - done) <= PATIENCE_SECONDS


class _ShardBuffers:
    """Preallocated rows of one shard, for every hookpoint."""

    def __init__(self, config: CacheConfig, hookpoints: tuple[Hookpoint, ...], capacity: int) -> None:
        dtype = getattr(torch, config.dtype)

        def empty() -> dict[Hookpoint, torch.Tensor]:
            return {hp: torch.empty(capacity, hp.d_in, dtype=dtype) for hp in hookpoints}

        self._activations = empty()
        self._gradients = empty() if config.gradients else {}
        self._token_index = torch.empty(capacity, dtype=torch.int64)
        self._filled = 0

    def add(
        self,
        token_index: torch.Tensor,
        activations: dict[Hookpoint, torch.Tensor],
        gradients: dict[Hookpoint, torch.Tensor],
    ) -> None:
        place = slice(self._filled, self._filled + len(token_index))
        self._token_index[place] = token_index
        for buffers, found in ((self._activations, activations), (self._gradients, gradients)):
            for hookpoint, buffer in buffers.items():
                buffer[place] = found[hookpoint]
        self._filled = place.stop

    def tensors(self, hookpoint: Hookpoint) -> dict[str, torch.Tensor]:
        rows = slice(0, self._filled)
        tensors = {"activations": self._activations[hookpoint][rows], "token_index": self._token_index[rows]}
        if self._gradients:
            tensors["gradients"] = self._gradients[hookpoint][rows]
        return tensors
