"""The cut that leaves the largest M of many keys, found digit by digit without sorting them."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl

from saelab_kernels.backends.triton.tiles import launch_options
from saelab_kernels.shapes import Int, Tensor

_BLOCK = 4096
"""Keys a program counts. Not measured."""


@triton.jit
@no_type_check
def digits_kernel(
    keys, prefix, histogram, total, SHIFT: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr
):
    """Adds to `histogram` how often each byte occurs at bit `SHIFT` of the positive keys that begin with `prefix`."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + place, mask=place < total, other=0).to(tl.int64)
    counted = key > 0
    if not FIRST:
        counted = counted & ((key >> (SHIFT + 8)) == tl.load(prefix))
    found = tl.histogram(((key >> SHIFT) & 255).to(tl.int32), 256, mask=counted)
    tl.atomic_add(histogram + tl.arange(0, 256), found.to(tl.int64), mask=found > 0, sem="relaxed")


def quota_cut(keys: Int[Tensor, "rows width"], quota: int) -> tuple[Int[Tensor, ""], Int[Tensor, ""]]:
    """The cut t and how many keys that equal it belong to the `quota` (at least 1) largest positive ones.

    Both on the device, t in the dtype of the keys; 0 and 0 where fewer than `quota` keys are positive. Exact and
    repeatable: the sums are of whole numbers, whatever their order.
    """
    flat = keys.reshape(-1)
    prefix = torch.zeros(1, dtype=torch.int64, device=keys.device)
    wanted = torch.full_like(prefix, quota)
    enough = None
    for shift in range(8 * keys.dtype.itemsize - 8, -1, -8):
        histogram = torch.zeros(256, dtype=torch.int64, device=keys.device)
        digits_kernel[(triton.cdiv(flat.shape[0], _BLOCK),)](
            flat, prefix, histogram, flat.shape[0],
            SHIFT=shift, FIRST=enough is None, BLOCK=_BLOCK, **launch_options(8),
        )  # fmt: skip
        falling = torch.cat([torch.zeros_like(prefix), histogram.flip(0).cumsum(0)])
        if enough is None:
            enough = falling[-1:] >= quota
        # Digits from the top that do not suffice together; the next one holds the cut.
        digits = (falling[1:] < wanted).sum().clamp_max(255).view(1)
        prefix = prefix * 256 + (255 - digits)
        wanted = wanted - falling.gather(0, digits)
    assert enough is not None
    cut = prefix.where(enough, 0).to(keys.dtype)
    return cut[0], wanted.where(enough, 0)[0]
