"""What every reader is given: a place, the user's answers, and files as checked tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from saelab.errors import DamagedFileError
from saelab.interop.answers import Answers
from saelab.interop.arrays import read_npz
from saelab.interop.locations import Location
from saelab.interop.pickled import read_pickled
from saelab.interop.settings import Settings
from saelab.interop.weights import Weights
from saelab.storage.tensors import read_tensors
from saelab_kernels.shapes import Tensor


@dataclass(frozen=True)
class Reading:
    """A place that is being read."""

    location: Location
    answers: Answers = field(default_factory=Answers)
    allow_pickle: bool = False
    """Whether `.pt` files may be read."""

    def settings(self, name: str) -> Settings:
        """Read a JSON file of the place."""
        return Settings.read(self.location.file(name))

    def weights(self, name: str) -> Weights:
        """Read all tensors of a safetensors, npz or `.pt` file.

        Raises:
            DamagedFileError: It is not sound, or holds anything but tensors.
        """
        path = self.location.file(name)
        if name.endswith(".npz"):
            return Weights(read_npz(path), path)
        if name.endswith(".safetensors"):
            return Weights(read_tensors(path), path)
        table = self.pickled(name)
        if strange := sorted(key for key, value in table.items() if not isinstance(value, Tensor)):
            raise DamagedFileError(f"{path}: {', '.join(strange)} are no tensors")
        return Weights(table, path)

    def pickled(self, name: str) -> dict[str, Any]:
        """Read a `.pt` file: tensors and plain values."""
        return read_pickled(self.location.file(name), allowed=self.allow_pickle)
