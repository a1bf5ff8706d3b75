"""`.npz` archives of numpy: every size is checked before a byte is unpacked, and objects (pickles) are never read."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saelab.errors import DamagedFileError
from saelab_kernels.shapes import Tensor

MAX_RATIO = 10
"""Content of a compressed archive may be at most so many times its file."""
_KINDS = {"f4", "f2", "f8", "i4", "i8", "u1", "b1"}
_MAX_DIMENSIONS = 8


def read_npz(path: Path) -> dict[str, Tensor]:
    """Read all arrays of an archive.

    Raises:
        DamagedFileError: It is no sound archive, would unpack to more than ten times its size, or holds
            anything but arrays of plain numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            size, limit = sum(member.file_size for member in members), path.stat().st_size * MAX_RATIO + 4096
            if size > limit:
                raise DamagedFileError(
                    f"{path} would unpack to {size:,} bytes, more than {MAX_RATIO} times its size"
                )
            return {
                member.filename.removesuffix(".npy"): _read_array(archive, member, path) for member in members
            }
    except OSError as error:
        raise DamagedFileError(f"cannot read {path}: {error.strerror or error}") from error
    # A broken archive fails anywhere inside the library, with many types.
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ValueError,
        zlib.error,
    ) as error:
        raise DamagedFileError(f"{path} is not a sound npz archive: {error}") from error


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Tensor:
    where = f"{path}: {member.filename}"
    with archive.open(member) as file:
        shape, fortran, dtype = _read_header(file, where)
        if dtype.hasobject or dtype.str[1:] not in _KINDS or dtype.byteorder == ">":
            raise DamagedFileError(f"{where} holds {dtype}, not plain numbers; it is not read")
        n_bytes = math.prod(shape) * dtype.itemsize
        if len(shape) > _MAX_DIMENSIONS or n_bytes > member.file_size:
            raise DamagedFileError(f"{where} of shape {shape} does not fit into {member.file_size:,} bytes")
        content = file.read(n_bytes + 1)
    if len(content) != n_bytes:
        raise DamagedFileError(f"{where} has {len(content):,} bytes, its shape {shape} needs {n_bytes:,}")
    array = np.frombuffer(content, dtype=dtype)
    return torch.from_numpy(array.reshape(shape, order="F" if fortran else "C").copy())


def _read_header(file: Any, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise DamagedFileError(f"{where} has the npy version {version}, which is not read")
