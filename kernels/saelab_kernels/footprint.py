"""Memory that training one sparse autoencoder takes, by formula, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from saelab_kernels.backends.stock_tiles import TILE_ROWS_CPU
from saelab_kernels.dispatch import choose_backend

FLOAT32, BFLOAT16 = 4, 2
WEIGHTS_AND_MOMENTS, WITH_GRADIENTS = 3, 4
L2_TILE_BYTES = 32 * 2**20
ENTRY_BYTES = 40
"""An entry's value, column, row, place and order, in the code and in the order of features."""
DENSE_ENTRY_BYTES = 2 * 8 * FLOAT32
"""Two matrices among dead features, of at most 8 numbers an entry."""
COMPILED_BYTES = 16 * 2**20
"""Compiled loops and the threads' memory."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes on the device, float32 weights; the batch and what is computed beside the kernels included."""

    held: int
    """As long as it is trained: weights, moments and, where they are materialised, gradients."""
    working: int
    """While a step runs; shared by several that take turns."""


def training_footprint(
    d_in: int, d_sae: int, rows: int, device: str, *, k: float = 32, aux_k: int = 0
) -> Footprint:
    """What a step on `rows` tokens takes with the backend that is chosen for the device.

    Derived from what the backends allocate; the fused ones hold no gradient matrix. The tiles of "cpu" are a few
    MB a thread and are counted like those of "torch", `[256, d_sae]`, which is more. AuxK is counted as if the
    dead features were so many that each token finds `aux_k` of them.

    Args:
        d_in, d_sae: Shape of the encoder.
        rows: Tokens in a step.
        device: Where it is trained.
        k: Features kept for a token.
        aux_k: Dead features kept for a token; 0 without AuxK.
    """
    parameters = 2 * d_in * d_sae + d_sae + d_in
    backend = choose_backend(device)
    fused = backend.startswith(("cpu", "triton"))
    half_copy = BFLOAT16 * d_in * d_sae if fused else 0
    tiles = L2_TILE_BYTES if backend == "triton" else 2 * FLOAT32 * TILE_ROWS_CPU * d_sae
    entries = ENTRY_BYTES * k + (ENTRY_BYTES + DENSE_ENTRY_BYTES) * aux_k
    return Footprint(
        held=(WEIGHTS_AND_MOMENTS if fused else WITH_GRADIENTS) * FLOAT32 * parameters,
        working=tiles + half_copy + rows * (8 * FLOAT32 * d_in + round(entries)) + COMPILED_BYTES,
    )
