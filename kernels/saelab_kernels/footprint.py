"""Memory that training one sparse autoencoder takes, by formula, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from saelab_kernels.dispatch import choose_backend

FLOAT32, BFLOAT16 = 4, 2
WEIGHTS_AND_MOMENTS, WITH_GRADIENTS = 3, 4
TILE_ROWS, L2_TILE_BYTES = 256, 32 * 2**20


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes on the device, float32 weights; the batch and what is computed beside the kernels included."""

    held: int
    """As long as it is trained: weights, moments and, where they are materialised, gradients."""
    working: int
    """While a step runs; shared by several that take turns."""


def training_footprint(d_in: int, d_sae: int, rows: int, device: str) -> Footprint:
    """What a step on `rows` tokens takes with the backend that is chosen for the device.

    Derived from what the backends allocate; the fused ones hold no gradient matrix. The tiles of "cpu" are a few
    MB a thread and are counted like those of "torch", `[256, d_sae]`, which is more.
    """
    parameters = 2 * d_in * d_sae + d_sae + d_in
    backend = choose_backend(device)
    fused = backend in ("cpu", "triton")
    half_copy = BFLOAT16 * d_in * d_sae if fused else 0
    tiles = L2_TILE_BYTES if backend == "triton" else 2 * FLOAT32 * TILE_ROWS * d_sae
    return Footprint(
        held=(WEIGHTS_AND_MOMENTS if fused else WITH_GRADIENTS) * FLOAT32 * parameters,
        working=tiles + half_copy + 8 * FLOAT32 * rows * d_in,
    )
