"""States of the passes: named arrays that are saved and read again, so that an interrupted pass goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saelab.errors import DamagedFileError
from saelab.storage.tensors import TensorFile, write_tensors

_DONE = "stretches done"


class State(ABC):
    """Something that is known so far."""

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return everything that is known, by name."""

    @abstractmethod
    def restore(self, tensors: dict[str, NDArray[Any]]) -> None:
        """Know what was known."""

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Size of the arrays in memory."""

    @property
    @abstractmethod
    def bound(self) -> int:
        """What `n_bytes` never exceeds, however many tokens are read."""


class Arrays(State):
    """A state of arrays that keep their shapes; they are the attributes named in ``names``."""

    names: tuple[str, ...] = ()

    def tensors(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in self.names}

    def restore(self, tensors: dict[str, NDArray[Any]]) -> None:
        for name in self.names:
            getattr(self, name)[...] = tensors[name]

    @property
    def n_bytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in self.names)

    @property
    def bound(self) -> int:
        return self.n_bytes


def save(path: Path, states: Mapping[str, State], done: int) -> None:
    """Write states as they are after some stretches; the file is whole or absent."""
    tensors = {}
    for part, state in states.items():
        for name, array in state.tensors().items():
            tensors[f"{part}.{name}"] = torch.from_numpy(np.ascontiguousarray(array))
    write_tensors(path, tensors, {_DONE: str(done)})


def load(path: Path, states: Mapping[str, State]) -> int:
    """Read states, and return after how many stretches they were saved; 0 where nothing sound is there."""
    if not path.exists():
        return 0
    try:
        with TensorFile(path) as file:
            done = int(file.metadata[_DONE])
            found = {name: file.read(name).numpy() for name in file.names}
    except (DamagedFileError, KeyError, ValueError):
        return 0
    for part, state in states.items():
        own = {
            name.removeprefix(f"{part}."): array
            for name, array in found.items()
            if name.startswith(f"{part}.")
        }
        state.restore(own)
    return done
