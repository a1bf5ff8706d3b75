"""Features that point the same way: cosines of decoder rows, exact over all pairs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from saelab_kernels.shapes import Float, Int, Tensor

BLOCK = 1024
"""Features whose cosines with all others are held at once."""


def decoder_neighbors(
    W_dec: Float[Tensor, "d_sae d_out"], n: int
) -> Iterator[tuple[range, Int[Tensor, "rows n"], Float[Tensor, "rows n"]]]:
    """Yield for consecutive features the others with the largest cosines, largest first, and the cosines.

    A row of zeros has cosine 0 with every other. There are at most ``d_sae - 1`` others.
    """
    unit = torch.nn.functional.normalize(W_dec.float(), dim=1, eps=1e-12)
    k = min(n, len(unit) - 1)
    for start in range(0, len(unit), BLOCK):
        rows = range(start, min(start + BLOCK, len(unit)))
        cosines = unit[rows.start : rows.stop] @ unit.T
        cosines[torch.arange(len(rows)), torch.arange(rows.start, rows.stop)] = -torch.inf
        found = cosines.topk(k, dim=1)
        yield rows, found.indices.cpu(), found.values.clamp(-1, 1).cpu()
