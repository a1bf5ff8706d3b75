"""PyTorch's `.pt` files, which are pickles: read only where that was allowed, as weights alone, sizes checked first.

`torch.load(weights_only=True)` builds tensors and plain values and calls nothing else. A file can still ask it for
more memory than it has bytes, so the archive is looked at first, and no tensor may be larger than its storage.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from saelab.errors import DamagedFileError, UsageError
from saelab_kernels.shapes import Tensor

MAX_PROGRAM_BYTES = 16 * 2**20
"""Largest pickle of an archive; the tensors' data are files beside it."""


def read_pickled(path: Path, *, allowed: bool) -> dict[str, Any]:
    """Read a table of tensors and plain values.

    Args:
        path: The file.
        allowed: Whether the user said that pickles may be read.

    Raises:
        UsageError: It was not allowed.
        DamagedFileError: It is no archive of PyTorch (of version 1.6 or later), holds anything but tensors and plain
            values, or a tensor that is larger than its data.
    """
    if not allowed:
        raise UsageError(
            f"{path} is a pickle of PyTorch, a kind of file that can hold programs; to read its weights, and nothing "
            "else of it, give --allow-pickle (in Python: allow_pickle=True)"
        )
    _require_plain_archive(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    # A broken or a hostile file fails anywhere inside the library, with many types.
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise DamagedFileError(f"{path} holds more than weights, or is damaged: {reason[0]}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise DamagedFileError(f"{path} does not hold a table of tensors")
    for name, value in found.items():
        if isinstance(value, Tensor):
            _require_own_data(value, f"{path}: {name}")
    return found


def _require_plain_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except OSError as error:
        raise DamagedFileError(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, ValueError, RuntimeError) as error:
        raise DamagedFileError(
            f"{path} is not an archive of PyTorch 1.6 or later ({error}); save it again with a newer one"
        ) from error
    size = path.stat().st_size
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise DamagedFileError(f"{path} is compressed, which PyTorch never does; it is not read")
    if sum(member.file_size for member in members) > size:
        raise DamagedFileError(f"{path} announces more data than its {size:,} bytes")
    for member in members:
        if member.filename.endswith(".pkl") and member.file_size > MAX_PROGRAM_BYTES:
            raise DamagedFileError(
                f"{path}: {member.filename} has {member.file_size:,} bytes; no table of weights has"
            )


def _require_own_data(tensor: Tensor, where: str) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise DamagedFileError(f"{where} is no ordinary tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise DamagedFileError(f"{where} of shape {tuple(tensor.shape)} is larger than its data")
