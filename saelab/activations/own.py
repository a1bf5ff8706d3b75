"""A store of somebody's own activations: no tokens, written shard by shard from whatever gives batches of rows."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from saelab.activations import layout
from saelab.activations.facts import StoredHook, StoreFacts
from saelab.activations.finish import finish_store
from saelab.activations.rounding import round_to
from saelab.activations.spec import ITEM_BYTES, StoredDtype
from saelab.activations.store import Store
from saelab.errors import SaelabError, UsageError
from saelab.lm.hooks import Hookpoint, slug
from saelab.lm.identity import ModelIdentity
from saelab.storage.files import require_free_space
from saelab.storage.lock import LOCK_NAME, locked
from saelab.storage.manifest import MANIFEST_NAME
from saelab.storage.tensors import write_tensors
from saelab.text.documents import split_of
from saelab.text.packing import DocumentTable
from saelab_kernels.shapes import Float, Int, Tensor

SHARD_ROWS = 131_072
SHARD_BYTES = 256 * 2**20
"""Size of the shards of all hookpoints together, about; they are held in memory twice while they are written."""
MIN_SHARD_ROWS = 1024
# So many blocks that about 5 % of them are a fair share, each long enough to keep neighbours together.
BLOCKS = 400
MAX_BLOCK_ROWS = 4096


class OwnBatch(NamedTuple):
    """Consecutive rows of your own activations."""

    activations: Mapping[str, Float[Tensor, "n _"]]
    """Activations by the name of the hookpoint: the same names and widths in every batch."""
    example: Int[Tensor, " n"]
    """Which example (image, document, ...) each row belongs to: all rows of one go to the same split."""


def store_tensors(
    path: Path, x: Float[Tensor, "rows d_in"], hook_name: str, heldout_share: float, dtype: StoredDtype
) -> Store:
    """Write activations as a store; see `Store.from_tensors`."""
    what = "from_tensors"
    if x.dim() != 2 or not x.is_floating_point() or 0 in x.shape:
        raise UsageError(
            f"{what}: x is {x.dtype} {tuple(x.shape)}; it must be floating [rows, d_in] and not empty"
        )
    require_free_space(path, bytes_of_rows(len(x), [x.shape[1]], dtype), what)
    batches = (
        OwnBatch({hook_name: x[stretch]}, blocks)
        for stretch, blocks in blocks_of_rows(len(x), rows_of_shard([x.shape[1]], dtype))
    )
    return store_batches(
        path, batches, heldout_share, dtype, what=what, source="tensors", example_name="block"
    )


def blocks_of_rows(n_rows: int, at_once: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield stretches of rows that have no examples, with the number of the block that each row belongs to."""
    block_rows = max(1, min(MAX_BLOCK_ROWS, n_rows // BLOCKS))
    for start in range(0, n_rows, at_once):
        stop = min(start + at_once, n_rows)
        yield slice(start, stop), torch.arange(start, stop) // block_rows


def rows_of_shard(widths: Iterable[int], dtype: StoredDtype) -> int:
    """Return how many rows of all hookpoints make up one shard."""
    return max(MIN_SHARD_ROWS, min(SHARD_ROWS, SHARD_BYTES // (sum(widths) * ITEM_BYTES[dtype])))


def bytes_of_rows(n_rows: int, widths: Iterable[int], dtype: StoredDtype) -> int:
    """Return the size on disk of so many rows of all hookpoints, with their positions and bits."""
    return n_rows * (1 + sum(width * ITEM_BYTES[dtype] + 8 for width in widths))


def store_batches(
    path: Path,
    batches: Iterable[OwnBatch],
    heldout_share: float,
    dtype: StoredDtype,
    *,
    what: str = "from_batches",
    source: str = "batches",
    example_name: str = "example",
    model: ModelIdentity | None = None,
) -> Store:
    """Write batches as a store; see `Store.from_batches`. After an error nothing is left of what was written."""
    with locked(path, what):
        if any(entry.name != LOCK_NAME for entry in path.iterdir()):
            raise SaelabError(f"{what}: {path} is not empty; choose a new folder")
        try:
            writer = _OwnWriter(path, dtype, what)
            for activations, example in batches:
                writer.add(activations, example)
            return writer.finish(heldout_share, source, example_name, model)
        except BaseException:
            if not (path / MANIFEST_NAME).exists():
                for entry in path.iterdir():
                    if entry.is_dir():
                        shutil.rmtree(entry, ignore_errors=True)
                    elif entry.name != LOCK_NAME:
                        entry.unlink(missing_ok=True)
            raise


class _OwnWriter:
    """Gathers rows until they fill a shard, and remembers which example they belong to."""

    def __init__(self, path: Path, dtype: StoredDtype, what: str) -> None:
        self.path, self.what = path, what
        self.dtype: StoredDtype = dtype
        self.widths: dict[str, int] = {}
        self.shards: list[int] = []
        self.n_rows = 0
        self._waiting: dict[str, list[Tensor]] = {}
        self._n_waiting = 0
        self._examples: list[NDArray[np.int64]] = []
        self._starts: list[NDArray[np.int64]] = []

    def add(self, activations: Mapping[str, Tensor], example: Tensor) -> None:
        self._check(activations, example)
        n_rows = len(example)
        for name, x in activations.items():
            self._require_finite(name, x)
            rounded = round_to(x.detach().cpu(), self.dtype, _said(name))
            self._waiting.setdefault(name, []).append(rounded)
        self._remember(example.detach().cpu().numpy().astype(np.int64))
        self.n_rows += n_rows
        self._n_waiting += n_rows
        full = rows_of_shard(self.widths.values(), self.dtype)
        while self._n_waiting >= full:
            self._write_shard(full)

    def finish(
        self, heldout_share: float, source: str, example_name: str, model: ModelIdentity | None
    ) -> Store:
        if not self.n_rows:
            raise UsageError(f"{self.what}: there are no rows")
        if self._n_waiting:
            self._write_shard(self._n_waiting)
        hooks = tuple(
            StoredHook(
                module_path=name,
                alias=None,
                slug=slug(Hookpoint(name, None, width)),
                d_in=width,
                dtype=self.dtype,
                n_rows=self.n_rows,
                has_gradients=False,
            )
            for name, width in self.widths.items()
        )
        facts = StoreFacts(
            hooks=hooks,
            shards=tuple(self.shards),
            n_tokens=self.n_rows,
            n_token_rows=0,
            bos_token_id=-1,
            has_loss=False,
            statistics={},
            model=model,
            model_spec=None,
            provenance={"made_from": source, "heldout_share": heldout_share},
            notes=(),
        )
        documents = self._documents(heldout_share, source, example_name)
        return finish_store(self.path, facts, np.ones(self.n_rows, dtype=np.bool_), documents, [])

    def _check(self, activations: Mapping[str, Tensor], example: Tensor) -> None:
        if not activations or not all(activations):
            raise UsageError(f"{self.what}: hook_name is empty")
        if example.dim() != 1 or example.is_floating_point() or example.is_complex():
            raise UsageError(
                f"{self.what}: example is {example.dtype} {tuple(example.shape)}; it must be whole numbers [n]"
            )
        for name, x in activations.items():
            if x.dim() != 2 or not x.is_floating_point() or x.shape[1] == 0 or len(x) != len(example):
                raise UsageError(
                    f"{self.what}: {_said(name)} are {x.dtype} {tuple(x.shape)}; "
                    f"they must be floating [{len(example)}, d_in]"
                )
        found = {name: x.shape[1] for name, x in activations.items()}
        if (self.widths or found) != found:
            raise UsageError(f"{self.what}: a batch holds {found}, the ones before it {self.widths}")
        self.widths = found

    def _require_finite(self, name: str, x: Tensor) -> None:
        bad = (~torch.isfinite(x).all(dim=1)).nonzero()
        if len(bad):
            raise SaelabError(
                f"{self.what}: {len(bad):,} of the rows from {self.n_rows:,} on of {_said(name)} hold NaN or "
                f"infinite values, the first is row {self.n_rows + int(bad[0]):,}"
            )

    def _remember(self, examples: NDArray[np.int64]) -> None:
        """Note where another example begins; one that comes back later is in the same split, by its name."""
        if not len(examples):
            return
        is_new = np.append(True, examples[1:] != examples[:-1])
        if self._examples and self._examples[-1][-1] == examples[0]:
            is_new[0] = False
        if is_new.any():
            self._examples.append(examples[is_new])
            self._starts.append(np.flatnonzero(is_new) + self.n_rows)

    def _write_shard(self, n_rows: int) -> None:
        first = sum(self.shards)
        token_index = torch.arange(first, first + n_rows)
        for name, parts in self._waiting.items():
            rows = parts[0] if len(parts) == 1 else torch.cat(parts)
            folder = slug(Hookpoint(name, None, self.widths[name]))
            write_tensors(
                self.path / layout.shard_name(folder, len(self.shards)),
                {"activations": rows[:n_rows], "token_index": token_index},
            )
            self._waiting[name] = [rows[n_rows:]]
        self.shards.append(n_rows)
        self._n_waiting -= n_rows

    def _documents(self, heldout_share: float, source: str, example_name: str) -> DocumentTable:
        starts = np.concatenate(self._starts)
        ids = tuple(f"{example_name}-{number:06d}" for number in np.concatenate(self._examples).tolist())
        return DocumentTable(
            ids=ids,
            starts=starts,
            lengths=np.diff(starts, append=self.n_rows),
            sources=(source,) * len(starts),
            heldout=np.array([split_of(name, heldout_share) == "heldout" for name in ids]),
        )


def _said(name: str) -> str:
    return f"activations at {name}"
