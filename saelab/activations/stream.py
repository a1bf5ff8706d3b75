"""Batches of activations in random order, from a store larger than memory.

1. The rows of the split, in document order, are cut into blocks of about 1 MB.
2. Every epoch permutes the blocks and takes them in groups of equal size: the pools.
3. A pool is read by a few threads while the one before it is consumed.
4. The rows of a pool are permuted; batches take them in that order, across pools and epochs.

So the order is a function of the store, the split, the seed, the size of a pool and the cursor: a
stream that starts at cursor c gives what one from the start gives after c rows, bit for bit.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from saelab.activations.facts import StoredHook
from saelab.activations.order import RowOrder
from saelab.activations.spec import ITEM_BYTES
from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.text.documents import Split
from saelab_kernels.shapes import Float, Int, Tensor

BLOCK_BYTES = 2**20
POOL_BYTES = 2**28
"""Default size of a pool; two are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows in random order; the tensors are the caller's own, no later call changes them."""

    x: Float[Tensor, "B d_in"]
    """Activations, float32."""
    token_index: Int[Tensor, " B"]
    """Position of each row's token in the token stream, int64."""
    gradients: Float[Tensor, "B d_in"] | None
    """Gradients of the summed loss, float32, where they were asked for."""
    document: Int[Tensor, " B"] | None = None
    """Number of each row's document in the text, of a live stream; a store finds it by the token."""


@dataclass(frozen=True)
class _Buffers:
    """Memory of one pool, in the stored dtype; reused: fresh memory costs more than reading into it."""

    x: Tensor
    token_index: Tensor
    gradients: Tensor | None


@dataclass(frozen=True)
class _Pool:
    """The rows of a pool as they were read, and the order to take them in."""

    rows: _Buffers
    order: Tensor


class StoreStream:
    """An endless stream of batches over one split of one hookpoint.

    Args:
        store: Where the rows are.
        hook: A hookpoint in either spelling; None where the store has only one.
        batch_size: Rows of a batch.
        seed: Decides the order.
        split: Which rows.
        cursor: Rows that were consumed before, over all epochs.
        pool_rows: Rows of a pool, approximately; by default `POOL_BYTES` of them. Part of the order.
        row_bytes: What blocks and pools are measured with; by default the widest hookpoint of the store, so that
            all its hookpoints come in one order. Streams of several stores in one order share the largest.
        read_threads: Threads that read.
        with_gradients: Also give the gradients.

    Raises:
        UsageError: The split has fewer rows than a batch, or gradients are wanted and not stored.
    """

    def __init__(
        self,
        store: Store,
        hook: str | StoredHook | None,
        *,
        batch_size: int,
        seed: int,
        split: Split = "train",
        cursor: int = 0,
        pool_rows: int | None = None,
        row_bytes: int | None = None,
        read_threads: int = 4,
        with_gradients: bool = False,
    ) -> None:
        self.store, self.hook = store, store.hook(hook)
        self.split: Split = split
        self.batch_size, self.seed, self.with_gradients = batch_size, seed, with_gradients
        self.n_rows = store.n_rows(self.hook, split)
        self._check(cursor, pool_rows, read_threads)
        # Gradients are left out of it: with or without them the order is the same.
        row_bytes = row_bytes or widest_row_bytes(store)
        self._order = RowOrder(
            self.n_rows, seed, max(1, BLOCK_BYTES // row_bytes), pool_rows or POOL_BYTES // row_bytes
        )
        self._cursor = cursor
        self._readers = ThreadPoolExecutor(read_threads, thread_name_prefix="saelab-read")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="saelab-pool")
        self._pools: dict[int, Future[_Pool]] = {}
        self._spare: list[_Buffers] = []
        self._gathered = torch.empty(batch_size, self.hook.d_in, dtype=self._dtype)

    @property
    def cursor(self) -> int:
        """Rows consumed in all; a new stream with this cursor goes on with the next batch."""
        return self._cursor

    def next(self) -> Batch:
        """Return the next batch.

        Raises:
            DamagedFileError: A shard cannot be read.
        """
        pieces, wanted = [], self.batch_size
        cursor = self._cursor
        while wanted:
            number, offset = self._order.find(cursor)
            pool = self._pool(number)
            chosen = pool.order[offset : offset + wanted]
            pieces.append(self._take(pool, chosen))
            wanted -= len(chosen)
            cursor += len(chosen)
        self._cursor = cursor
        return join_batches(pieces)

    def close(self) -> None:
        """Stop reading ahead, end the threads and free the memory."""
        self._loader.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._pools.clear()
        self._spare.clear()

    def __enter__(self) -> StoreStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, cursor: int, pool_rows: int | None, read_threads: int) -> None:
        given = {"batch_size": self.batch_size, "pool_rows": pool_rows, "read_threads": read_threads}
        for name, value in given.items():
            if value is not None and value < 1:
                raise UsageError(f"stream: {name} is {value}, it must be at least 1")
        if cursor < 0:
            raise UsageError(f"stream: cursor is {cursor}, it must be at least 0")
        if self.batch_size > self.n_rows:
            raise UsageError(
                f"stream: the batch size is {self.batch_size:,}, it can be at most {self.n_rows:,}, "
                f"the rows of the {self.split} split of {self.store.path}"
            )
        if self.with_gradients and not self.hook.has_gradients:
            raise UsageError(f"stream: {self.store.path} has no gradients; cache it again with --gradients")

    def _pool(self, number: int) -> _Pool:
        """Return a pool and have the next one read meanwhile; earlier ones are dropped."""
        for old in [n for n in self._pools if n < number]:
            self._spare.append(self._pools.pop(old).result().rows)
        for wanted in (number, number + 1):
            if wanted not in self._pools:
                self._pools[wanted] = self._loader.submit(self._load, wanted)
        return self._pools[number].result()

    def _load(self, number: int) -> _Pool:
        spans, order = self._order.pool(number)
        ends = np.cumsum([stop - start for start, stop in spans]).tolist()
        buffers = self._spare.pop() if self._spare else self._new_buffers()

        def read(span: tuple[int, int], end: int) -> None:
            found = self.store.stored_rows(self.hook, self.split, *span, with_gradients=self.with_gradients)
            place = slice(end - len(found.x), end)
            buffers.x[place] = found.x
            buffers.token_index[place] = found.token_index
            if buffers.gradients is not None and found.gradients is not None:
                buffers.gradients[place] = found.gradients

        list(self._readers.map(read, spans, ends))
        return _Pool(buffers, order)

    def _new_buffers(self) -> _Buffers:
        x = torch.empty(self._order.max_pool_rows, self.hook.d_in, dtype=self._dtype)
        token_index = torch.empty(len(x), dtype=torch.int64)
        return _Buffers(x, token_index, torch.empty_like(x) if self.with_gradients else None)

    def _take(self, pool: _Pool, chosen: Tensor) -> Batch:
        rows = pool.rows
        return Batch(
            x=self._widened(rows.x, chosen),
            token_index=rows.token_index.index_select(0, chosen),
            gradients=None if rows.gradients is None else self._widened(rows.gradients, chosen),
        )

    def _widened(self, rows: Tensor, chosen: Tensor) -> Tensor:
        # Gathered in the stored dtype (half the traffic), widened into memory that is the caller's.
        gathered = self._gathered[: len(chosen)]
        torch.index_select(rows, 0, chosen, out=gathered)
        return gathered.to(torch.float32, copy=True)

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.hook.dtype)


def widest_row_bytes(store: Store) -> int:
    """Return the bytes of a row at the widest hookpoint of a store, without gradients."""
    return max(hook.d_in * ITEM_BYTES[hook.dtype] for hook in store.hooks)


def join_batches(pieces: list[Batch]) -> Batch:
    """Return consecutive pieces as one batch."""
    if len(pieces) == 1:
        return pieces[0]
    gradients = [piece.gradients for piece in pieces if piece.gradients is not None]
    documents = [piece.document for piece in pieces if piece.document is not None]
    return Batch(
        x=torch.cat([piece.x for piece in pieces]),
        token_index=torch.cat([piece.token_index for piece in pieces]),
        gradients=torch.cat(gradients) if gradients else None,
        document=torch.cat(documents) if documents else None,
    )
