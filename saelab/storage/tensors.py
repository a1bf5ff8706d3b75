"""Tensor files: safetensors with a header padded to 4 KB, checked before a byte of data is believed.

Padding puts the data at an aligned offset, so that the same file can be read with positioned reads
here and with any safetensors reader elsewhere. The checks are ours because a file may come from a
stranger: header size, dtypes, shapes, and offsets that neither overlap nor leave the file.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from saelab.errors import DamagedFileError
from saelab.storage.files import write_aside

HEADER_ALIGNMENT = 4096
MAX_HEADER_BYTES = 16 * 2**20
MAX_DIMENSIONS = 64
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_NUMPY = {
    torch.float64: "<f8",
    torch.float32: "<f4",
    torch.float16: "<f2",
    torch.int64: "<i8",
    torch.int32: "<i4",
    torch.uint8: "u1",
    torch.bool: "?",
}


@dataclass(frozen=True)
class _Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Offset of the data from the start of the file, in bytes."""
    n_bytes: int


def write_tensors(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write named tensors as one safetensors file; equal tensors give equal bytes.

    Args:
        path: Final name.
        tensors: Any strides and device; they are written row-major, in the order of the names.
        metadata: Text facts kept in the header.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    ready, offset = [], 0
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        n_bytes = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + n_bytes],
        }
        offset += n_bytes
        ready.append(tensor)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % HEADER_ALIGNMENT)

    def fill(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in ready:
            if tensor.numel():  # one at a time: a row-major copy may be needed, and is freed again
                file.write(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    write_aside(path, fill)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a file.

    Raises:
        DamagedFileError: The file is missing or is not a sound safetensors file.
    """
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.names}


class TensorFile:
    """A checked safetensors file whose rows can be read by position from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DamagedFileError(f"cannot read {path}: {error.strerror}") from error
        try:
            self._entries, self.metadata = self._read_header()
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor without reading it."""
        return self._entry(name).dtype

    def read(self, name: str) -> torch.Tensor:
        """Read a whole tensor."""
        entry = self._entry(name)
        return self._read_bytes(entry.start, entry.n_bytes).view(entry.dtype).reshape(entry.shape)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read rows ``start`` to ``stop`` of a tensor with one positioned read."""
        entry = self._entry(name)
        if not entry.shape or not 0 <= start <= stop <= entry.shape[0]:
            raise DamagedFileError(
                f"{self.path}: rows {start} to {stop} of {name}, which has shape {entry.shape}"
            )
        row_bytes = entry.n_bytes // entry.shape[0] if entry.shape[0] else 0
        data = self._read_bytes(entry.start + start * row_bytes, (stop - start) * row_bytes)
        return data.view(entry.dtype).reshape(stop - start, *entry.shape[1:])

    def mapped(self, name: str) -> np.memmap[Any, Any] | NDArray[Any]:
        """Map a tensor read-only, for reading scattered rows; bfloat16 cannot be mapped."""
        entry = self._entry(name)
        if not entry.n_bytes:
            return np.empty(entry.shape, dtype=_NUMPY[entry.dtype])
        return np.memmap(
            self.path, dtype=_NUMPY[entry.dtype], mode="r", offset=entry.start, shape=entry.shape
        )

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise DamagedFileError(
                f"{self.path} has no tensor {name!r}; it has {', '.join(self._entries) or 'none'}"
            )
        return self._entries[name]

    def _read_bytes(self, start: int, n_bytes: int) -> torch.Tensor:
        data = torch.empty(n_bytes, dtype=torch.uint8)
        view, done = data.numpy().data, 0
        while done < n_bytes:
            count = os.preadv(self._descriptor, [view[done:]], start + done)
            if count == 0:
                raise DamagedFileError(f"{self.path} ends {n_bytes - done:,} bytes too early")
            done += count
        return data

    def _read_header(self) -> tuple[dict[str, _Entry], dict[str, str]]:
        size = os.fstat(self._descriptor).st_size
        if size < 8:
            raise DamagedFileError(f"{self.path} has {size} bytes: not a safetensors file")
        length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise DamagedFileError(
                f"{self.path} announces a header of {length:,} bytes in a file of {size:,}"
            )
        try:
            header = json.loads(os.pread(self._descriptor, length, 8))
        except (ValueError, RecursionError) as error:
            raise DamagedFileError(f"{self.path}: the header is not valid JSON: {error}") from error
        if not isinstance(header, dict):
            raise DamagedFileError(f"{self.path}: the header is not a table of tensors")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(fact, str) for fact in metadata.values()):
            raise DamagedFileError(f"{self.path}: the metadata are not a table of texts")
        entries = {name: self._parse_entry(name, raw, 8 + length, size) for name, raw in header.items()}
        end = 8 + length
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].n_bytes)):
            if entry.start < end:
                raise DamagedFileError(f"{self.path}: tensor {name!r} overlaps another")
            end = entry.start + entry.n_bytes
        return entries, metadata

    def _parse_entry(self, name: str, raw: Any, data_start: int, file_size: int) -> _Entry:
        if not isinstance(raw, dict) or str(raw.get("dtype")) not in _DTYPES:
            raise DamagedFileError(f"{self.path}: tensor {name!r} has no dtype that saelab reads")
        shape, offsets = raw.get("shape"), raw.get("data_offsets")
        if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
            raise DamagedFileError(
                f"{self.path}: tensor {name!r} has shape {shape!r} and offsets {offsets!r}"
            )
        if len(shape) > MAX_DIMENSIONS:  # before they are multiplied: the product would grow without bound
            raise DamagedFileError(
                f"{self.path}: tensor {name!r} has {len(shape):,} dimensions; at most {MAX_DIMENSIONS} are read"
            )
        dtype = _DTYPES[raw["dtype"]]
        n_bytes = math.prod(shape) * dtype.itemsize
        start, stop = data_start + offsets[0], data_start + offsets[1]
        if stop - start != n_bytes or stop > file_size:
            raise DamagedFileError(
                f"{self.path}: tensor {name!r} of shape {shape} needs {n_bytes:,} bytes, "
                f"its offsets give {stop - start:,} in a file of {file_size:,}"
            )
        return _Entry(dtype, tuple(shape), start, n_bytes)


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**62 for v in value
    )
