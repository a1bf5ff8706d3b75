"""Code shards: every kept (token, feature) pair of a stretch of the corpus, in token order.

A shard holds `token_index` int64 ``[n]`` (positions in the index's tokens, ascending), `row_offsets` int64 ``[n + 1]``,
`columns` int32 ``[nnz]`` and `values` float32 ``[nnz]``; values are above 0, columns ascend within a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from saelab.errors import DamagedFileError
from saelab.storage.tensors import read_tensors, write_tensors
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Int, Tensor


@dataclass(frozen=True, kw_only=True)
class CodeShard:
    """The codes of some kept tokens."""

    token_index: Int[Tensor, " n"]
    """Position of each token in the corpus, int64, ascending."""
    code: SparseCode
    """Ragged, values above 0, columns ascending within a row."""


def shard_name(number: int) -> str:
    """Return the name of a shard within the folder of codes."""
    return f"shard-{number:06d}.safetensors"


def write_shard(path: Path, shard: CodeShard) -> None:
    """Write one shard; equal codes give equal bytes."""
    code = shard.code
    assert code.offsets is not None
    write_tensors(
        path,
        {
            "token_index": shard.token_index,
            "row_offsets": code.offsets,
            "columns": code.columns,
            "values": code.values,
        },
        {"d_sae": str(code.d_sae)},
    )


def read_shard(path: Path, d_sae: int) -> CodeShard:
    """Read one shard and check that it is sound.

    Raises:
        DamagedFileError: It is missing, or its tensors do not belong together.
    """
    found = read_tensors(path)
    if set(found) != {"token_index", "row_offsets", "columns", "values"}:
        raise DamagedFileError(
            f"{path} is not a code shard: it holds {', '.join(sorted(found)) or 'nothing'}"
        )
    tokens, offsets, columns, values = (
        found[name] for name in ("token_index", "row_offsets", "columns", "values")
    )
    kinds = (tokens.dtype, offsets.dtype, columns.dtype, values.dtype)
    if kinds != (torch.int64, torch.int64, torch.int32, torch.float32) or any(
        t.dim() != 1 for t in found.values()
    ):
        raise DamagedFileError(f"{path} is not a code shard: its tensors are of the wrong kind")
    sound = (
        len(offsets) == len(tokens) + 1
        and int(offsets[0]) == 0
        and int(offsets[-1]) == len(values) == len(columns)
        and bool((offsets.diff() >= 0).all())
        and bool((tokens.diff() > 0).all())
        and (len(columns) == 0 or (int(columns.min()) >= 0 and int(columns.max()) < d_sae))
    )
    if not sound:
        raise DamagedFileError(
            f"{path}: tokens, offsets and columns of the code shard do not belong together"
        )
    return CodeShard(token_index=tokens, code=SparseCode(values, columns, d_sae, offsets))
