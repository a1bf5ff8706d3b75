"""A sample of training rows that is fair in any store, also in one that is not shuffled."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from saelab.activations.store import Store, StoredHook
from saelab_kernels.shapes import Float, Tensor

TILE = 1024


def spread_rows(store: Store, hook: StoredHook, rows: int) -> Iterator[Float[Tensor, "tile d_in"]]:
    """Yield tiles of consecutive training rows at equal distances, about ``rows`` in all.

    Rows with NaN or inf are left out. Where the split has no more than ``rows``, all are yielded.
    """
    total = store.n_rows(hook, "train")
    tiles = -(-total // TILE)
    wanted = max(1, min(tiles, rows // TILE))
    for index in range(wanted):
        start = index * tiles // wanted * TILE
        x = store.rows(hook, "train", start, min(start + TILE, total)).x
        yield x[torch.isfinite(x).all(1)]
