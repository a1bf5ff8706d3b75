"""The largest scores of the rows of one tile: tokens that pick features, or features that pick tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saelab_kernels.backends.cpu.largest import finish_rows, scan_tile
from saelab_kernels.backends.cpu.tiles import TILE_ROWS, Lists, numbers, product_tiles, staged
from saelab_kernels.request import SelectRequest
from saelab_kernels.shapes import Float, Int, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """Scores `units @ others.T + offsets`, of which each unit is given its largest."""

    units: Float[Tensor, "units d"]
    others: Float[Tensor, "others d"]
    """Contiguous."""
    other_offsets: Float[Tensor, " others"]
    unit_offsets: Float[Tensor, " units"] | None
    budgets: Int[Tensor, " units"]
    """int64; how many of each unit."""
    sort: bool
    boundary: bool

    @property
    def blocks(self) -> int:
        """Number of tiles of units."""
        return -(-self.units.shape[0] // TILE_ROWS)

    def rows_of(self, block: int) -> slice:
        """The units of a block."""
        return slice(block * TILE_ROWS, min((block + 1) * TILE_ROWS, self.units.shape[0]))

    def run(self, block: int, out: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        """Write values and numbers of the others `[height, width]`, and the scores that follow `[height]`."""
        here = self.rows_of(block)
        height, extra = here.stop - here.start, int(self.boundary)
        wanted = numbers(self.budgets[here])
        lists = Lists(TILE_ROWS, out[0].shape[1] + extra, self.others.shape[0], self.units.dtype)
        by_unit = None if self.unit_offsets is None else numbers(self.unit_offsets[here].contiguous())
        by_other = numbers(self.other_offsets.contiguous())
        for first, tile in product_tiles(staged(self.units, here.start), self.others):
            scan_tile(tile[:height], by_other, by_unit, first, wanted + extra, *lists.arrays)
        finish_rows(wanted, self.sort, self.boundary, *lists.held, *out)


def feature_rows_of(request: SelectRequest) -> Float[Tensor, "n d_in"]:
    """The encoder as rows, one a ranked feature, contiguous (a copy where it is not feature-major)."""
    return request.of_columns(request.W_enc.detach().t()).contiguous()
