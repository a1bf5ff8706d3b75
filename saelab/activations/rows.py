"""Rows as they are read from a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from saelab_kernels.shapes import Float, Int, Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Consecutive activation rows of one hookpoint and split."""

    x: Float[Tensor, "rows d_in"]
    """Activations."""
    token_index: Int[Tensor, " rows"]
    """Position of each row's token in the token stream, int64."""
    gradients: Float[Tensor, "rows d_in"] | None
    """Gradients of the summed loss, where the store has them and they were asked for."""


def joined(parts: Sequence[Tensor]) -> Float[Tensor, "*rows d"]:
    """Join activations of the same tokens at several hookpoints side by side."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)
