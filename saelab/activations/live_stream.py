"""Batches of activations from a model that runs while the SAE is trained: nothing on the disk.

One pool is consumed in random order while a thread makes the next one. A position names the first
document of the pool and the rows of it that were consumed, so that a stream is resumed by making
one pool again. A text that fits into one pool gives the same batches as a store of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch

from saelab.activations.live_pool import LivePool, PoolMaker, PoolStart, PoolStopped
from saelab.activations.order import RowOrder
from saelab.activations.source import Order
from saelab.activations.stream import BLOCK_BYTES, Batch, join_batches
from saelab.errors import DamagedFileError
from saelab_kernels.shapes import Int, Tensor


class LiveStream:
    """An endless stream of batches over the training documents of a text.

    Args:
        maker: Makes the pools.
        hooks: Module paths to read.
        order: Batch, seed, and the rows that will be wanted in all.
        position: Where an earlier stream stood; None for the start.
        first: The first pool, where it has been made already.

    Raises:
        DamagedFileError: The position is not one of a live stream.
    """

    def __init__(
        self,
        maker: PoolMaker,
        hooks: Sequence[str],
        order: Order,
        position: dict[str, Any] | None,
        first: LivePool,
    ) -> None:
        self._maker, self._hooks, self._order, self._first = maker, tuple(hooks), order, first
        self._stopped = False
        self._loader = ThreadPoolExecutor(
            1, "saelab-live", initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        )
        start, self._offset, self._consumed = _read_position(position)
        self._next: Future[LivePool] | None = None
        self._pool = self._make(start)
        self._taken_over()

    def next(self) -> dict[str, Batch]:
        """Return the next batch of each hookpoint, float32.

        Raises:
            SaelabError: An activation is not finite or does not fit the dtype.
        """
        pieces: dict[str, list[Batch]] = {hook: [] for hook in self._hooks}
        wanted = self._order.batch
        while wanted:
            if self._offset == self._pool.n_rows:
                self._advance()
            count = min(wanted, self._pool.n_rows - self._offset)
            chosen = self._shuffled[self._offset : self._offset + count]
            for hook in self._hooks:
                pieces[hook].append(self._take(hook, chosen))
            self._offset += count
            self._consumed += count
            wanted -= count
        return {hook: join_batches(parts) for hook, parts in pieces.items()}

    def position(self) -> dict[str, Any]:
        """Return where the next batch begins."""
        return asdict(self._pool.start) | {"offset": self._offset, "rows": self._consumed}

    def close(self) -> None:
        """Give up the pool that is being made, and free the memory."""
        self._stopped = True
        if self._next is not None:
            with suppress(PoolStopped):
                self._next.exception()
        self._loader.shutdown(wait=True, cancel_futures=True)
        # The stream outlives its use in a training's last part, its memory shall not.
        self._next = None
        self._pool = self._first
        self._shuffled = self._shuffled[:0]

    def _advance(self) -> None:
        self._pool = self._make(self._pool.after) if self._next is None else self._next.result()
        self._offset = 0
        self._taken_over()

    def _taken_over(self) -> None:
        """Draw the order of the pool that is consumed from now on, and begin with the next one."""
        self._shuffled = self._order_of_pool()
        rows_left = self._pool.n_rows - self._offset
        self._next = None
        if self._consumed + rows_left < self._order.total_rows:
            self._next = self._loader.submit(self._make, self._pool.after)

    def _make(self, start: PoolStart) -> LivePool:
        if start == self._first.start:
            return self._first
        device = self._maker.lm.device
        if device.type != "cuda":
            return self._maker.make(start, lambda: self._stopped)
        # A CUDA stream of its own lets the model run beside the SAE's kernels.
        with torch.cuda.stream(torch.cuda.Stream(device)):
            return self._maker.make(start, lambda: self._stopped)

    def _order_of_pool(self) -> Int[Tensor, " n"]:
        """Return the order of a pool's rows: that of a store which holds them and no others."""
        start, n_rows = self._pool.start, self._pool.n_rows
        row_bytes = max(x.shape[1] * x.element_size() for x in self._pool.x.values())  # as in a store
        block_rows = max(1, BLOCK_BYTES // row_bytes)
        order = RowOrder(n_rows, _seed_of(self._order.seed, start.number), block_rows, n_rows)
        spans, chosen = order.pool(start.epoch)
        rows = torch.cat([torch.arange(first, stop) for first, stop in spans])
        return rows[chosen]

    def _take(self, hook: str, chosen: Int[Tensor, " n"]) -> Batch:
        pool = self._pool
        gradients = pool.gradients.get(hook)
        return Batch(
            x=pool.x[hook].index_select(0, chosen).to(torch.float32, copy=True),
            token_index=pool.token_index.index_select(0, chosen),
            gradients=None if gradients is None else gradients.index_select(0, chosen).float(),
            document=pool.document.index_select(0, chosen),
        )


def _read_position(position: dict[str, Any] | None) -> tuple[PoolStart, int, int]:
    if position is None:
        return PoolStart(), 0, 0
    try:
        start = PoolStart(**{name: int(position[name]) for name in ("epoch", "number", "document")})
        return start, int(position["offset"]), int(position["rows"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"a live stream cannot go on from the position {position!r}") from error


def _seed_of(seed: int, number: int) -> int:
    """Return the seed of a pool: the stream's own for the first one, another for each of the others."""
    if number == 0:
        return seed
    digest = hashlib.blake2b(f"{seed},{number}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")
