"""Tiles of pre-activations in the dtype of the weights, tokens down and features across."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from saelab_kernels.backends.triton.select_filter import offer_tile
from saelab_kernels.backends.triton.select_lists import RowLists
from saelab_kernels.backends.triton.tiles import Operands, SelectPlan, multiply, staged
from saelab_kernels.shapes import Tensor


class ExactTiles:
    """Products of one fixed height in reused memory."""

    def __init__(self, operands: Operands, plan: SelectPlan) -> None:
        x, g = operands.x, operands.g
        self._operands, self._plan = operands, plan
        self._width = plan.tile_width(x.dtype, 1 if g is None else 2)
        self._x = x.new_empty(plan.height, x.shape[1])
        self._z = x.new_empty(plan.height * min(self._width, operands.n))
        self._g = None if g is None else g.new_empty(plan.height, g.shape[1])
        self._effect = None if g is None else torch.empty_like(self._z)

    def fill(self, lists: RowLists, start: int, rows: int) -> None:
        """Offers all columns of the tile of tokens from `start` on to its lists."""
        for first, tile, effect in self.products(start):
            offer_tile(lists, self._operands, self._plan, tile, effect, (start, first), rows)

    def products(self, start: int) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """First column, `x W^T` and, with an attribution, `g W_dec^T`; `[height, width]`, for tokens from `start` on.

        The next product overwrites them.
        """
        operands = self._operands
        staged(self._x, operands.x, start)
        if self._g is not None and operands.g is not None:
            staged(self._g, operands.g, start)
        for first in range(0, operands.n, self._width):
            here = slice(first, first + self._width)
            effect = None
            if self._g is not None and self._effect is not None and operands.W_dec is not None:
                effect = multiply(self._g, operands.W_dec[here], self._effect)
            yield first, multiply(self._x, operands.W[here], self._z), effect
