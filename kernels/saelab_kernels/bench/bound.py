"""What the training step is measured against: one encoder product, and the least traffic that Adam needs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from saelab_kernels.shapes import Float, Tensor

PRODUCT, PRODUCT_BF16, TRAFFIC, COPY = "product", "product-bf16", "traffic", "copy"
BOUND, BOUND_BF16 = (PRODUCT, TRAFFIC), (PRODUCT_BF16, TRAFFIC)
"""The variants whose times are added to the bound; the second for a selection in bfloat16."""

Call = Callable[[], object]


def product_call(
    W_dec: Float[Tensor, "d_sae d_in"], x: Float[Tensor, "batch d_in"], dtype: torch.dtype
) -> Call:
    """`[batch, d_in] x [d_in, d_sae]` with operands and result of a dtype, into memory that is kept."""
    x, W = x.to(dtype), W_dec.to(dtype)
    out = W.new_empty(len(x), len(W))
    return lambda: torch.mm(x, W.t(), out=out)


def traffic_call(W_dec: Float[Tensor, "d_sae d_in"]) -> Call:
    """A copy of 24 bytes a parameter: weight and two moments of both matrices read and written, float32."""
    states = torch.stack([W_dec, W_dec, W_dec])
    copies = torch.empty_like(states)

    def traffic() -> None:
        for _ in ("encoder", "decoder"):
            copies.copy_(states)

    return traffic


PARTS: dict[str, Callable[[Tensor, Tensor], Call]] = {
    PRODUCT: lambda W_dec, x: product_call(W_dec, x, torch.float32),
    PRODUCT_BF16: lambda W_dec, x: product_call(W_dec, x, torch.bfloat16),
    TRAFFIC: lambda W_dec, x: traffic_call(W_dec),
}
"""From `W_dec` and a batch, on one device, to what is timed."""


def copy_call(mib: int, device: str) -> tuple[Call, int]:
    """A copy of so many MiB, which measures the memory, and the bytes that it moves (read and written)."""
    source = torch.zeros(mib * 2**18, device=device)
    target = torch.ones_like(source)
    return (lambda: target.copy_(source)), 2 * source.nbytes
