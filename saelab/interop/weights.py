"""Named tensors of a stranger's file: taken by name, shape and kind, and none left over unread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from saelab.errors import DamagedFileError
from saelab_kernels.shapes import Tensor


class Weights:
    """The tensors of one file.

    Args:
        tensors: By their names.
        where: The file, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: Path | str) -> None:
        self._left = dict(tensors)
        self.where = where

    @property
    def names(self) -> set[str]:
        """Names that were not taken yet."""
        return set(self._left)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor that is there."""
        return tuple(self._peek(name).shape)

    def take(self, name: str, *shape: int | None) -> Tensor:
        """Return a tensor of numbers as float32.

        Args:
            name: Its name in the file.
            shape: The length of each dimension; None where any will do.

        Raises:
            DamagedFileError: It is missing, has another shape, is not of floats, or holds NaN or inf.
        """
        tensor = self._peek(name)
        fits = len(shape) == tensor.dim() and all(
            wanted in (None, length) for wanted, length in zip(shape, tensor.shape, strict=True)
        )
        if not fits or tensor.numel() == 0:
            wanted = " x ".join("any" if length is None else str(length) for length in shape) or "one number"
            raise DamagedFileError(
                f"{self.where}: {name} has shape {tuple(tensor.shape)}, expected was {wanted}"
            )
        if not tensor.is_floating_point():
            raise DamagedFileError(f"{self.where}: {name} is {tensor.dtype}; weights are floats")
        del self._left[name]
        found = tensor.float()
        if not torch.isfinite(found).all():
            raise DamagedFileError(f"{self.where}: {name} holds NaN or inf")
        return found

    def take_whole_number(self, name: str) -> int:
        """Return a scalar of whole numbers.

        Raises:
            DamagedFileError: It is missing or something else.
        """
        tensor = self._peek(name)
        if tensor.numel() != 1 or tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise DamagedFileError(f"{self.where}: {name} is not one whole number")
        del self._left[name]
        return int(tensor.item())

    def drop(self, names: Iterable[str]) -> None:
        """Leave out tensors that change nothing that the SAE computes."""
        for name in names:
            self._left.pop(name, None)

    def require_nothing_left(self) -> None:
        """Refuse a file with tensors that nobody here knows: they may change what the SAE computes.

        Raises:
            DamagedFileError: Naming them.
        """
        if self._left:
            raise DamagedFileError(
                f"{self.where} holds {', '.join(sorted(self._left))}, which this format does not know"
            )

    def _peek(self, name: str) -> Tensor:
        if name not in self._left:
            raise DamagedFileError(
                f"{self.where} has no tensor {name}; it has {', '.join(sorted(self._left)) or 'none'}"
            )
        return self._left[name]
