"""Matrix products in tiles that stay in a core's cache, and each thread's memory for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import torch

from saelab_kernels.backends.cpu.largest import LIST_EXTRA, LIST_FACTOR
from saelab_kernels.shapes import Float, Tensor

TILE_ROWS = 256
"""Rows of every product, the last ones padded: a row's result is then the same bits in any batch. Measured (two
threads, encoding and selecting in encoder products): 512 rows gain 2 % at d_in 768 and nothing at 256, 128 rows
lose 10 and 7 %, and a call with one row pays for a whole tile."""
TILE_COLUMNS = 2048
"""Columns of a product. Measured alike: 1.10 products at d_in 256 and 1.14 at 768; with 1,024 columns 1.16 and 1.16,
with 512 columns 1.22 and 1.22."""

BITS = {torch.float32: np.int32, torch.float64: np.int64}
"""Integers of the width of each floating point type that the kernels take."""

_memory = threading.local()


def product_tiles(
    stage: Float[Tensor, "height d_in"], rows: Float[Tensor, "n d_in"]
) -> Iterator[tuple[int, np.ndarray]]:
    """`stage @ rows.T` tile by tile: the first column's number and `[height, columns]`, overwritten by the next."""
    width = TILE_COLUMNS
    whole = workspace("product", (stage.shape[0] * width,), rows.dtype)
    for first in range(0, rows.shape[0], width):
        part = rows[first : first + width]
        tile = whole[: stage.shape[0] * part.shape[0]].view(stage.shape[0], part.shape[0])
        torch.mm(stage, part.t(), out=tile)
        yield first, numbers(tile)


def staged(source: Float[Tensor, "rows d_in"], start: int) -> Float[Tensor, "height d_in"]:
    """Rows of `source` from `start` on, in a tile of the fixed height: itself where it has them, else padded with 0."""
    part = source[start : start + TILE_ROWS]
    if part.shape[0] == TILE_ROWS and part.is_contiguous():
        return part
    stage = workspace("stage", (TILE_ROWS, source.shape[1]), source.dtype)
    stage[: part.shape[0]].copy_(part)
    stage[part.shape[0] :].zero_()
    return stage


def numbers(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor as an array; bfloat16 as the uint16 of its bits."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def workspace(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory of the calling thread, the same at every call with this name, shape and dtype."""
    held: dict[str, Tensor] = _memory.__dict__.setdefault("held", {})
    tensor = held.get(name)
    if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != dtype:
        with torch.inference_mode(False):  # memory made inside that mode could not be written outside of it
            tensor = held[name] = torch.empty(shape, dtype=dtype)
    return tensor


class Lists:
    """The candidate lists of the rows of one tile, in the calling thread's memory.

    Args:
        height: Rows.
        largest_budget: Most numbers wanted of a row.
        n: Numbers of a row.
        dtype: Their type.
    """

    def __init__(self, height: int, largest_budget: int, n: int, dtype: torch.dtype) -> None:
        places = min(LIST_FACTOR * largest_budget + LIST_EXTRA, n + 1)
        self.values = numbers(workspace("values", (height, places), dtype))
        self.bits = self.values.view(BITS[dtype])
        self.columns = numbers(workspace("columns", (height, places), torch.int32))
        self.counts = numbers(workspace("counts", (height,), torch.int64))
        self.limits = numbers(workspace("limits", (height,), dtype))
        self.limit_bits = self.limits.view(BITS[dtype])
        self.counts[:] = 0  # where there is nothing to choose from, no tile begins the lists

    @property
    def held(self) -> tuple[np.ndarray, ...]:
        """What `finish_rows` reads."""
        return self.values, self.bits, self.columns, self.counts

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What `scan_tile` fills."""
        return (*self.held, self.limits, self.limit_bits)
