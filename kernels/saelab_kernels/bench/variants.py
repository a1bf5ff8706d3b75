"""Which variants of the training step a run has: ours by device and backend, and those of other libraries."""

from __future__ import annotations

from saelab_kernels.bench.bound import PARTS

FLOAT32_BACKEND = {"cpu": "cpu-float32"}
"""The backend that selects by float32 products, beside one that does so by bfloat16 products where they are fast."""

PEERS = {
    "saelens": ("saelens", "saelens-bf16", "saelens-sparse"),
    "dictionary-learning": ("dictionary-learning", "dictionary-learning-bf16"),
    "sparsify": ("sparsify", "sparsify-bf16"),
    "dense": ("dense", "dense-bf16"),
}
"""Variants of each library, as it is by default first."""


def own_variants(device: str, backend: str) -> tuple[str, ...]:
    """Ours, each without and with clipping at a norm, and one with AuxK.

    `saelab` is the backend of the run; `saelab-float32` selects by float32 products where that one may not;
    `saelab-graph` is the same step replayed as a CUDA graph, which only backend "triton" can be.
    """
    names = ["saelab", "saelab-clip"]
    if backend in FLOAT32_BACKEND:
        names += ["saelab-float32", "saelab-float32-clip"]
    if device == "cuda" and backend == "triton":
        names += ["saelab-graph", "saelab-graph-clip"]
    return (*names, "saelab-auxk")


def peer_variants(library: str, device: str) -> tuple[str, ...]:
    """Of a library; on CUDA sparsify is bfloat16 by default."""
    return tuple(name for name in PEERS[library] if device == "cpu" or name != "sparsify-bf16")


def is_float32(name: str, device: str) -> bool:
    """Whether another library's variant multiplies in float32, so that `saelab-float32` is its match."""
    return not (name.endswith("-bf16") or (name == "sparsify" and device != "cpu"))


def all_variants(device: str, backend: str, *, peers: bool) -> list[str]:
    """All that take turns: the parts of the bound, ours, the dense step, and with `peers` other libraries."""
    others = [
        name for library in PEERS if peers or library == "dense" for name in peer_variants(library, device)
    ]
    return [*PARTS, *own_variants(device, backend), *others]
