"""Somebody's own activations from `.npy` and `.safetensors` files that may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from saelab.activations.own import OwnBatch, blocks_of_rows, bytes_of_rows, rows_of_shard, store_batches
from saelab.activations.spec import StoredDtype
from saelab.activations.store import Store
from saelab.errors import DamagedFileError, UsageError
from saelab.storage.files import require_free_space
from saelab.storage.tensors import TensorFile

DEFAULT_NAME = "custom"
_GROUPS = "document"
_PASSED_OVER = "token_index"
_WHOLE_NUMBERS = (torch.int64, torch.int32, torch.uint8)


def store_file(path: Path, file: Path, at: Sequence[str], heldout_share: float, dtype: StoredDtype) -> Store:
    """Write the activations of a file as a store; see `Store.from_file`."""
    if not file.is_file():
        raise UsageError(f"from_file: there is no file {file}")
    if file.suffix.lower() == ".npy":
        if len(at) > 1:
            raise UsageError(f"from_file: {file} holds one array; give it one name, not {', '.join(at)}")
        return _store_npy(path, file, at[0] if at else DEFAULT_NAME, heldout_share, dtype)
    if file.suffix.lower() == ".safetensors":
        return _store_safetensors(path, file, at, heldout_share, dtype)
    raise UsageError(f"from_file: {file} is neither a .npy nor a .safetensors file")


def _store_npy(path: Path, file: Path, name: str, heldout_share: float, dtype: StoredDtype) -> Store:
    x = _map_npy(file)
    n_rows, width = x.shape
    require_free_space(path, bytes_of_rows(n_rows, [width], dtype), "from_file")

    def batches() -> Iterator[OwnBatch]:
        for stretch, blocks in blocks_of_rows(n_rows, rows_of_shard([width], dtype)):
            # A copy in this machine's order of bytes: the file is mapped read-only.
            rows = np.array(x[stretch], dtype=x.dtype.newbyteorder("="), order="C")
            yield OwnBatch({name: torch.from_numpy(rows)}, blocks)

    return store_batches(
        path, batches(), heldout_share, dtype, what="from_file", source="file", example_name="block"
    )


def _map_npy(file: Path) -> np.ndarray:
    try:
        x = np.load(file, mmap_mode="r", allow_pickle=False)
    except (
        OSError,
        ValueError,
        SyntaxError,
        TypeError,
        KeyError,
        OverflowError,
        EOFError,
        MemoryError,
    ) as error:
        raise DamagedFileError(
            f"from_file: cannot read {file} as .npy: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(x, np.ndarray):  # an archive of arrays that calls itself .npy
        raise DamagedFileError(f"from_file: {file} is not a single array")
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind != "f" or x.dtype.itemsize > 8:
        hint = (
            "; numpy has no bfloat16: save it as float32, or as .safetensors" if x.dtype.kind == "V" else ""
        )
        raise UsageError(
            f"from_file: {file} holds {x.dtype} {x.shape}; it must be float16, float32 or float64 "
            f"[rows, d_in] and not empty{hint}"
        )
    return x


def _store_safetensors(
    path: Path, file: Path, at: Sequence[str], heldout_share: float, dtype: StoredDtype
) -> Store:
    with TensorFile(file) as tensors:
        names = _hookpoints_of(tensors, at)
        n_rows = tensors.shape(names[0])[0]
        widths = [tensors.shape(name)[1] for name in names]
        has_groups = _has_groups(tensors, n_rows)
        require_free_space(path, bytes_of_rows(n_rows, widths, dtype), "from_file")

        def batches() -> Iterator[OwnBatch]:
            for stretch, blocks in blocks_of_rows(n_rows, rows_of_shard(widths, dtype)):
                start, stop = stretch.start, stretch.stop
                example = tensors.read_rows(_GROUPS, start, stop).long() if has_groups else blocks
                yield OwnBatch({name: tensors.read_rows(name, start, stop) for name in names}, example)

        example_name = "document" if has_groups else "block"
        return store_batches(
            path, batches(), heldout_share, dtype, what="from_file", source="file", example_name=example_name
        )


def _hookpoints_of(tensors: TensorFile, at: Sequence[str]) -> list[str]:
    floating = [name for name in tensors.names if tensors.dtype(name).is_floating_point]
    for name in at:
        if name not in floating:
            raise UsageError(
                f"from_file: {tensors.path} has no activations {name!r}; it has {', '.join(floating) or 'none'}"
            )
    names = list(dict.fromkeys(at)) or floating
    if not names:
        raise UsageError(f"from_file: {tensors.path} holds no floating tensor")
    n_rows = tensors.shape(names[0])[:1]
    for name in names:
        shape = tensors.shape(name)
        if len(shape) != 2 or 0 in shape or shape[:1] != n_rows:
            raise UsageError(
                f"from_file: {tensors.path}: {name} is {tensors.dtype(name)} {shape}; all must be [rows, d_in] "
                "with the same rows and not empty; choose some with --at"
            )
    return names


def _has_groups(tensors: TensorFile, n_rows: int) -> bool:
    """Whether there is a tensor that names the document of each row."""
    others = [name for name in tensors.names if not tensors.dtype(name).is_floating_point]
    for name in others:
        if name not in (_GROUPS, _PASSED_OVER):
            raise UsageError(
                f"from_file: {tensors.path}: {name} is {tensors.dtype(name)}, which are no activations; "
                f"whole numbers [rows] named {_GROUPS!r} tell which rows belong together"
            )
        if tensors.shape(name) != (n_rows,) or tensors.dtype(name) not in _WHOLE_NUMBERS:
            raise UsageError(
                f"from_file: {tensors.path}: {name} is {tensors.dtype(name)} {tensors.shape(name)}; "
                f"it must be whole numbers [{n_rows}]"
            )
    return _GROUPS in others
