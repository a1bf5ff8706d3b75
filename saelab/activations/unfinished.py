"""What a store needs only until it is finished: checksums of its shards, their losses, who is at work on which.

```
unfinished/earlier.json              manifest of the finished store that is extended or repaired
unfinished/loss.bin                  losses of that store
unfinished/shard-000000.json         sizes and checksums of a shard's files; written last: now the shard is there
unfinished/loss-000000.safetensors   losses of a shard's tokens
unfinished/shard-000000.lock         held by the process that writes the shard
```

The folder goes when the store is finished. A shard is compared with its checksum once, at the end,
when all its bytes are read anyway.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saelab.activations import layout
from saelab.errors import DamagedFileError
from saelab.storage.files import move, read_json, write_json
from saelab.storage.lock import claimed
from saelab.storage.manifest import MANIFEST_NAME, describe_file, digest_of_file
from saelab.storage.tensors import read_tensors

UNFINISHED = "unfinished"
_EARLIER = f"{UNFINISHED}/earlier.json"
_EARLIER_LOSS = f"{UNFINISHED}/{layout.LOSS}"


def loss_part_name(shard: int) -> str:
    """Return the name of the losses of one shard's tokens."""
    return f"{UNFINISHED}/loss-{shard:06d}.safetensors"


class Unfinished:
    """The temporary part of one store's folder."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._earlier: dict[str, dict[str, Any]] | None = None

    def reopen(self) -> None:
        """Make a finished store an unfinished one; its checksums and losses are kept.

        Whatever of this was done before a crash is not done again.
        """
        if (self._out / MANIFEST_NAME).exists():
            move(self._out / MANIFEST_NAME, self._out / _EARLIER)
        whole, kept = self._out / layout.LOSS, self._out / _EARLIER_LOSS
        if layout.LOSS in self._earlier_files() and whole.exists() and not kept.exists():
            move(whole, kept)

    def remove(self) -> None:
        """Remove the folder of a store that is finished."""
        shutil.rmtree(self._out / UNFINISHED, ignore_errors=True)

    @contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Keep a shard to this process for the time of the block, or learn that another one has it."""
        with claimed(self._out / UNFINISHED / f"shard-{shard:06d}.lock") as is_mine:
            yield is_mine

    def record(self, shard: int, names: list[str]) -> None:
        """Write down that a shard's files are there, with their checksums."""
        write_json(self._record(shard), {name: describe_file(self._out, name) for name in names})

    def described(self, shard: int) -> Mapping[str, dict[str, Any]]:
        """Return the entries of a shard's files, by name, as manifests have them; what is not listed is not there."""
        return ChainMap(_entries(_read(self._record(shard))), self._earlier_files())

    def earlier_losses(self, stretch: slice) -> NDArray[np.float32] | None:
        """Return losses that the earlier store has of a stretch of tokens; None where it does not reach so far."""
        losses = self._earlier_loss_file
        return None if losses is None or stretch.stop > len(losses) else losses[stretch]

    def losses(self, shard: int, stretch: slice) -> NDArray[np.float32]:
        """Return the losses of a shard's tokens.

        Raises:
            DamagedFileError: They are not there.
        """
        path = self._out / loss_part_name(shard)
        if not path.exists() and (earlier := self.earlier_losses(stretch)) is not None:
            return earlier
        losses = read_tensors(path).get("losses", torch.empty(0))
        if losses.shape != (stretch.stop - stretch.start,):
            raise DamagedFileError(f"{path} has {len(losses):,} losses, not those of the shard")
        return losses.numpy()

    def drop(self, shard: int, names: list[str]) -> None:
        """Remove a shard of which a file is damaged, so that it is written again."""
        for path in (self._record(shard), *(self._out / name for name in names)):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _record(self, shard: int) -> Path:
        return self._out / UNFINISHED / f"shard-{shard:06d}.json"

    def _earlier_files(self) -> dict[str, dict[str, Any]]:
        if self._earlier is None:
            # A finished store has its manifest still in its place.
            manifest = self._out / MANIFEST_NAME
            raw = _read(manifest if manifest.exists() else self._out / _EARLIER)
            self._earlier = _entries(raw.get("files"))
        return self._earlier

    @cached_property
    def _earlier_loss_file(self) -> NDArray[np.float32] | None:
        facts, path = self._earlier_files().get(layout.LOSS), self._out / _EARLIER_LOSS
        if (self._out / MANIFEST_NAME).exists():
            path = self._out / layout.LOSS
        if facts is None or not path.is_file() or digest_of_file(path) != facts["blake2b"]:
            return None
        return layout.map_array(path, "<f4", facts["bytes"] // 4)


def _read(path: Path) -> dict[str, Any]:
    """Read a table that may have been damaged: then it says nothing."""
    try:
        raw = read_json(path)
    except DamagedFileError:
        return {}
    return raw if isinstance(raw, dict) else {}


def _entries(raw: Any) -> dict[str, dict[str, Any]]:
    """Return the sound entries of a list of files."""
    return {
        name: facts
        for name, facts in (raw if isinstance(raw, dict) else {}).items()
        if isinstance(facts, dict)
        and isinstance(facts.get("bytes"), int)
        and isinstance(facts.get("blake2b"), str)
    }
