"""Where training gets its activations: an activation store, or a model that is run while training.

Both are the same to a trainer: statistics before the first step, batches in a random order that is a
function of a seed and a position, and rows spread over the data for calibration at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from saelab.activations.facts import NamedHook, StoredHook
from saelab.activations.spec import ITEM_BYTES
from saelab.activations.statistics import HookStatistics
from saelab.activations.store import Store
from saelab.activations.stream import POOL_BYTES, Batch, StoreStream, widest_row_bytes
from saelab.interrupts import StopRequest
from saelab.lm.identity import ModelIdentity
from saelab_kernels.shapes import Tensor

SPREAD_TILE = 1024


@dataclass(frozen=True, kw_only=True)
class Order:
    """What decides the order of the rows, beside the data themselves."""

    batch: int
    """Rows of a batch."""
    seed: int
    """Decides the permutations."""
    pool_rows: int
    """Rows that are mixed at a time, approximately."""
    total_rows: int
    """Rows that will be wanted in all: nothing is read ahead beyond them."""
    gradients: bool = False
    """Whether the gradients of the loss are wanted too; they change nothing in the order."""


@runtime_checkable
class SourceHook(NamedHook, Protocol):
    """A hookpoint of a source."""

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        ...

    @property
    def has_gradients(self) -> bool:
        """Whether gradients of the model's loss stand beside the activations."""
        ...


@runtime_checkable
class RowStream(Protocol):
    """Batches of one or several hookpoints."""

    def next(self) -> dict[str, Batch]:
        """Return the next batch of each hookpoint, by module path."""
        ...

    def position(self) -> dict[str, Any]:
        """Return, as JSON values, where the next batch begins; a stream opened there gives the same batches."""
        ...

    def close(self) -> None:
        """Stop reading ahead and free the memory."""
        ...


@runtime_checkable
class ActivationSource(Protocol):
    """What a trainer needs of its data."""

    @property
    def identity(self) -> str:
        """Digest of what decides the activations: equal identities give equal rows."""
        ...

    @property
    def earlier_identities(self) -> tuple[str, ...]:
        """Identities that it had before it was extended."""
        ...

    @property
    def model_identity(self) -> ModelIdentity | None:
        """The model that made them; None for somebody's own activations."""
        ...

    @property
    def hooks(self) -> Sequence[SourceHook]:
        """The hookpoints that there are."""
        ...

    def hook(self, name: str | None) -> SourceHook:
        """Find a hookpoint by either spelling; None means the only one (UsageError where that is not so)."""
        ...

    def prepare(self, stop: StopRequest, *, quiet: bool) -> None:
        """Do the work that statistics and samples need, where there is any (Interrupted where it was stopped)."""
        ...

    def statistics(self, hook: str) -> HookStatistics:
        """Return statistics of the training rows of a hookpoint, or of a large sample of them."""
        ...

    def spread_rows(self, hooks: Sequence[str], rows: int) -> Iterator[dict[str, Tensor]]:
        """Yield about ``rows`` training rows in tiles ``[tile, d_in]`` by hookpoint, a fair sample in any order of
        documents; rows that are not finite at one of the hookpoints are left out at all."""
        ...

    def default_pool_rows(self, hook: str) -> int:
        """Return the size of the mixing pool where none is asked for."""
        ...

    def pool_bytes(self, hooks: Iterable[str], pool_rows: int) -> int:
        """Return the host memory that the mixing of some hookpoints takes."""
        ...

    def open(self, hooks: Sequence[str], order: Order, position: dict[str, Any] | None) -> RowStream:
        """Open a stream at a position that an earlier one gave, or at the start."""
        ...

    def describe(self, folder: Path) -> dict[str, Any]:
        """Return what a run in ``folder`` records of its source, to find it or make it again."""
        ...


def spread_tiles(
    total: int, rows: int, read: Callable[[int, int], dict[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """Yield tiles of consecutive rows at equal distances, about ``rows`` of ``total``, without NaN and inf.

    Args:
        total: Rows that there are; all are yielded where they are no more than ``rows``.
        rows: Rows that are wanted.
        read: Returns the rows from a start to a stop, ``[n, d_in]`` by hookpoint.
    """
    tiles = -(-total // SPREAD_TILE)
    wanted = max(1, min(tiles, rows // SPREAD_TILE))
    for index in range(wanted):
        start = index * tiles // wanted * SPREAD_TILE
        found = read(start, min(start + SPREAD_TILE, total))
        good = torch.stack([torch.isfinite(x).all(1) for x in found.values()]).all(0)
        yield {hook: x[good] for hook, x in found.items()}


class StoreSource:
    """The training rows of an activation store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def identity(self) -> str:
        return self.store.identity

    @property
    def earlier_identities(self) -> tuple[str, ...]:
        return self.store.extended_from

    @property
    def model_identity(self) -> ModelIdentity | None:
        return self.store.model_identity

    @property
    def hooks(self) -> tuple[StoredHook, ...]:
        return self.store.hooks

    def hook(self, name: str | None) -> StoredHook:
        return self.store.hook(name)

    def prepare(self, stop: StopRequest, *, quiet: bool) -> None:
        """Nothing: a store knows its statistics."""

    def statistics(self, hook: str) -> HookStatistics:
        return self.store.statistics(hook)

    def spread_rows(self, hooks: Sequence[str], rows: int) -> Iterator[dict[str, Tensor]]:
        total = self.store.n_rows(hooks[0], "train")
        yield from spread_tiles(
            total, rows, lambda a, b: {hook: self.store.rows(hook, "train", a, b).x for hook in hooks}
        )

    def default_pool_rows(self, hook: str) -> int:
        # The same for all hookpoints of a store, so that they can be trained on one pass.
        return POOL_BYTES // widest_row_bytes(self.store)

    def pool_bytes(self, hooks: Iterable[str], pool_rows: int) -> int:
        return sum(
            2 * min(pool_rows, self.store.n_rows(hook, "train")) * self._row_bytes(hook) for hook in hooks
        )

    def open(self, hooks: Sequence[str], order: Order, position: dict[str, Any] | None) -> RowStream:
        places = {hook: (self.store, hook) for hook in hooks}
        return StorePass(places, order, position, widest_row_bytes(self.store))

    def describe(self, folder: Path) -> dict[str, Any]:
        path = os.path.relpath(self.store.path.resolve(), folder.resolve())
        return {"store": path, "source_identity": self.identity}

    def _row_bytes(self, hook: str) -> int:
        stored = self.store.hook(hook)
        return stored.d_in * ITEM_BYTES[stored.dtype]


class StorePass:
    """One stream for each hookpoint, in step with one another.

    Args:
        places: The store of each hookpoint and its name there; the stores hold the same tokens.
        order: What decides the order of the rows,
        position: Where an earlier pass stood; None for the start.
        row_bytes: and what blocks and pools are measured with.
    """

    def __init__(
        self,
        places: Mapping[str, tuple[Store, str]],
        order: Order,
        position: dict[str, Any] | None,
        row_bytes: int,
    ) -> None:
        with ExitStack() as opened:
            self._streams = {
                hook: opened.enter_context(
                    StoreStream(
                        store,
                        name,
                        batch_size=order.batch,
                        seed=order.seed,
                        cursor=0 if position is None else position["rows"],
                        pool_rows=order.pool_rows,
                        row_bytes=row_bytes,
                        with_gradients=order.gradients,
                    )
                )
                for hook, (store, name) in places.items()
            }
            self._opened = opened.pop_all()

    def next(self) -> dict[str, Batch]:
        return {hook: stream.next() for hook, stream in self._streams.items()}

    def position(self) -> dict[str, Any]:
        return {"rows": next(iter(self._streams.values())).cursor}

    def close(self) -> None:
        self._opened.close()
