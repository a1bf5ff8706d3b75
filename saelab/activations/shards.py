"""The files of a store that hold rows: checked when they are opened, read by position."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import torch

from saelab.activations.facts import StoredHook, StoreFacts
from saelab.activations.layout import shard_name
from saelab.errors import DamagedFileError
from saelab.storage.manifest import Manifest, check_file
from saelab.storage.tensors import TensorFile

MAX_OPEN_SHARDS = 256
"""Shards kept open at once; a store may have more files than a process may open."""


class ShardReader:
    """Reads rows across the shards of a finished store; safe from several threads."""

    def __init__(self, folder: Path, manifest: Manifest, facts: StoreFacts) -> None:
        self._folder, self._manifest, self._facts = folder, manifest, facts
        self._ends = np.cumsum([0, *facts.shards])
        self._open: dict[str, TensorFile] = {}
        self._opening = threading.Lock()

    @property
    def n_rows(self) -> int:
        """Rows of all shards together."""
        return int(self._ends[-1])

    def read(self, hook: StoredHook, tensor: str, start: int, stop: int) -> list[torch.Tensor]:
        """Read store rows `start` to `stop` of a tensor, one piece for each shard that holds some of them.

        Raises:
            DamagedFileError: A shard is missing, cut or unreadable; the message says how to rebuild it.
        """
        pieces = []
        shard = int(np.searchsorted(self._ends, start, side="right")) - 1
        while start < stop:
            first, end = int(self._ends[shard]), int(self._ends[shard + 1])
            if (upto := min(stop, end)) > start:
                pieces.append(self._read_one(hook, shard, tensor, start - first, upto - first))
                start = upto
            shard += 1
        return pieces

    def close(self) -> None:
        """Close the open files."""
        with self._opening:
            for file in self._open.values():
                file.close()
            self._open.clear()

    def _read_one(self, hook: StoredHook, shard: int, tensor: str, start: int, stop: int) -> torch.Tensor:
        name = shard_name(hook.slug, shard)
        try:
            file = self._open.get(name) or self._open_shard(hook, shard, name)
            try:
                return file.read_rows(tensor, start, stop)
            finally:
                if self._open.get(name) is not file:
                    file.close()
        except DamagedFileError as error:
            raise DamagedFileError(f"{error}; {self._how_to_rebuild(name)}") from error

    def _open_shard(self, hook: StoredHook, shard: int, name: str) -> TensorFile:
        with self._opening:
            if name in self._open:
                return self._open[name]
            if name not in self._manifest.files:
                raise DamagedFileError(f"{self._folder}: the manifest lists no {name}")
            check_file(self._folder, name, self._manifest, content=False)
            file = TensorFile(self._folder / name)
            try:
                check_shard(file, hook.d_in, hook.dtype, hook.has_gradients, self._facts.shards[shard])
            except DamagedFileError:
                file.close()
                raise
            if len(self._open) < MAX_OPEN_SHARDS:
                self._open[name] = file
            return file

    def _how_to_rebuild(self, name: str) -> str:
        if self._facts.n_token_rows == 0:
            return "make the store again from its tensors"
        return f"delete {name} and run the same cache command: it rebuilds only that shard"


def check_shard(file: TensorFile, d_in: int, dtype: str, has_gradients: bool, n_rows: int) -> None:
    """Compare the tensors of a shard with what the store says.

    Raises:
        DamagedFileError: A tensor is missing or has another shape or dtype.
    """
    stored: torch.dtype = getattr(torch, dtype)
    wanted = {"activations": (stored, (n_rows, d_in)), "token_index": (torch.int64, (n_rows,))}
    if has_gradients:
        wanted["gradients"] = (stored, (n_rows, d_in))
    for tensor, (dtype_wanted, shape) in wanted.items():
        if file.dtype(tensor) != dtype_wanted or file.shape(tensor) != shape:
            raise DamagedFileError(
                f"{file.path}: {tensor} is {file.dtype(tensor)} {file.shape(tensor)}, "
                f"expected {dtype_wanted} {shape}"
            )
