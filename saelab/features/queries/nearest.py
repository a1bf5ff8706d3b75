"""Features by the direction of their decoder rows, block by block from the SAE's file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from saelab.errors import DamagedFileError, UsageError
from saelab.features.records import FeatureRow
from saelab.sae.files import WEIGHTS
from saelab.storage.tensors import TensorFile
from saelab_kernels.shapes import Float, Tensor

BLOCK = 8_192
"""Decoder rows that are read at a time: the whole matrix may be larger than memory."""


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """A feature that points like a vector."""

    row: FeatureRow
    """The feature."""
    cosine: float
    """Cosine of its decoder row and the vector."""


def nearest_rows(
    sae: Path, d_sae: int, vector: Float[Tensor, " d_out"], limit: int
) -> tuple[Float[Tensor, " n"], list[int]]:
    """Return the cosines of the nearest decoder rows with a vector, largest first, and whose they are.

    Args:
        sae: Folder of the SAE.
        d_sae: Its features.
        vector: A direction in raw activation units; its length does not matter.
        limit: How many.

    Raises:
        UsageError: The vector has another length than decoder rows, is zero, or holds NaN or inf.
        DamagedFileError: The weights are missing or of another shape.
    """
    vector = vector.detach().to("cpu", torch.float32)
    with TensorFile(sae / WEIGHTS) as file:
        shape = file.shape("W_dec")
        if len(shape) != 2 or shape[0] != d_sae or file.dtype("W_dec") != torch.float32:
            raise DamagedFileError(f"{file.path}: W_dec of shape {shape} does not have {d_sae:,} rows")
        if vector.shape != shape[1:]:
            raise UsageError(f"index: the vector has {len(vector):,} values, decoder rows have {shape[1]:,}")
        length = float(vector.double().norm())
        if not torch.isfinite(vector).all() or length == 0:
            raise UsageError("index: a vector of zeros, or with NaN or inf, has no direction")
        vector = (vector.double() / length).float()
        cosines = torch.empty(d_sae)
        for start in range(0, d_sae, BLOCK):
            rows = file.read_rows("W_dec", start, min(d_sae, start + BLOCK))
            norms = torch.linalg.vector_norm(rows, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
            cosines[start : start + len(rows)] = (rows @ vector) / norms
    values, order = cosines.sort(descending=True, stable=True)  # ties by feature
    return values[:limit], order[:limit].tolist()
