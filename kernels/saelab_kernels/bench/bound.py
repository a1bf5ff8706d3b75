"""What the training step is measured against: one encoder product, and the least traffic that Adam needs."""

from __future__ import annotations

import torch

from saelab_kernels.bench.rounds import Variant, local
from saelab_kernels.shapes import Float, Tensor

PRODUCT, PRODUCT_BF16, TRAFFIC, COPY = "product", "product-bf16", "traffic", "copy"
BOUND, BOUND_BF16 = (PRODUCT, TRAFFIC), (PRODUCT_BF16, TRAFFIC)
"""The variants whose times are added to the bound; the second for a selection in bfloat16."""


def bound_variants(
    W_dec: Float[Tensor, "d_sae d_in"], batches: list[Float[Tensor, "batch d_in"]], device: str
) -> dict[str, Variant]:
    """`[batch, d_in] x [d_in, d_sae]` in float32 and bfloat16, and a copy of 24 bytes a matrix parameter.

    The copy reads and writes three float32 (weight and two moments) for every entry of the two matrices.
    """
    xs, W = [x.to(device) for x in batches], W_dec.to(device)
    xs_bf16, W_bf16 = [x.to(torch.bfloat16) for x in xs], W.to(torch.bfloat16)
    out = W.new_empty(len(xs[0]), len(W))
    out_bf16 = torch.empty_like(out, dtype=torch.bfloat16)
    states = torch.stack([W, W, W])
    copies = torch.empty_like(states)

    def traffic(batch: int) -> None:
        for _ in ("encoder", "decoder"):
            copies.copy_(states)

    return {
        PRODUCT: local(lambda batch: torch.mm(xs[batch], W.t(), out=out), device),
        PRODUCT_BF16: local(lambda batch: torch.mm(xs_bf16[batch], W_bf16.t(), out=out_bf16), device),
        TRAFFIC: local(traffic, device),
    }


def copy_variant(mib: int, device: str) -> tuple[Variant, int]:
    """A copy of so many MiB, which measures the memory, and the bytes that it moves (read and written)."""
    source = torch.zeros(mib * 2**18, device=device)
    target = torch.ones_like(source)
    return local(lambda batch: target.copy_(source), device), 2 * source.nbytes
