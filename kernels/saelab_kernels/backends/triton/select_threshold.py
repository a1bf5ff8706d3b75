"""Everything above a threshold, and the pairs around it: no lists, no cut, only room for what is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl

from saelab_kernels.backends.triton.select_exact import ExactTiles
from saelab_kernels.backends.triton.select_filter import pair_score
from saelab_kernels.backends.triton.select_ragged import capturing, copy_rows, ragged_code, running_sums
from saelab_kernels.backends.triton.tiles import Operands, SelectPlan, launch_options, operands_of
from saelab_kernels.code import SparseCode
from saelab_kernels.request import Selection, SelectRequest
from saelab_kernels.shapes import Float, Int, Tensor


@triton.jit
@no_type_check
def threshold_kernel(
    tile, effect, bias, scale, weight, theta, reach, out_z, out_column, starts, room, count,
    first_row, first_column, width, PRODUCT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program a row of the tile: z of what lies above `theta`, or with `reach` closer to it than that.

    All are counted, those for which there is room are written.
    """
    row = first_row + tl.program_id(0)
    ACC: tl.constexpr = out_z.dtype.element_ty
    in_tile = tl.program_id(0).to(tl.int64) * width
    to = tl.load(starts + row)
    space = tl.load(room + row)
    n = tl.load(count + row)
    for start in range(0, width, CHUNK):
        place = start + tl.arange(0, CHUNK)
        inside = place < width
        col = first_column + place
        acc = tl.load(tile + in_tile + place, mask=inside, other=0).to(ACC)
        z = acc + tl.load(bias + col, mask=inside, other=0).to(ACC)
        effects = None
        if effect is not None:
            effects = effect + in_tile + place
        score = pair_score(
            z, effects, scale, weight, col, row + tl.zeros((CHUNK,), tl.int32), inside, PRODUCT
        )
        t = tl.load(theta + col, mask=inside, other=0).to(ACC)
        if reach is not None:
            found = inside & (tl.abs(score - t) < tl.load(reach))
        else:
            ranked = tl.where(score != score, float("inf"), score)
            found = inside & (ranked > t) & (ranked > 0)
        at = n + tl.cumsum(found.to(tl.int32), 0) - 1
        tl.store(out_z + to + at, z, mask=found & (at < space))
        tl.store(out_column + to + at, col, mask=found & (at < space))
        n += tl.sum(found.to(tl.int32), axis=0)
    tl.store(count + row, n)


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Where the pairs of one condition go."""

    z: Float[Tensor, " room"]
    column: Int[Tensor, " room"]
    starts: Int[Tensor, " rows"]
    """int64; first entry of each row."""
    room: Int[Tensor, " rows"]
    """int32; entries that a row may fill."""
    count: Int[Tensor, " rows"]
    """int32; pairs that a row has, also those without room."""
    reach: Float[Tensor, ""] | None
    """Half the bandwidth; None for what lies above the threshold."""

    @classmethod
    def slots(cls, operands: Operands, rooms: Tensor, total: int, reach: Tensor | None) -> _Found:
        """Room for `total` pairs, `rooms` a row."""
        z = torch.zeros(total, dtype=operands.dtype, device=operands.x.device)
        column = torch.zeros(total, dtype=torch.int32, device=z.device)
        rooms = rooms.to(torch.int32)
        return cls(z, column, running_sums(rooms)[:-1], rooms, torch.zeros_like(rooms), reach)


def select_threshold(request: SelectRequest, plan: SelectPlan) -> Selection:
    """`Threshold`: ragged codes of what is above theta and, with a bandwidth, of what is around it.

    Reads the numbers of pairs from the device. Where a row has more than `row_room` of the plan, all products are made
    a second time, with exactly the room that they need. While a CUDA graph is captured, nothing is read or repeated:
    the capacity is `row_room` a row, and `overflow` says where it did not suffice.
    """
    operands = operands_of(request, plan)
    device, dtype = request.x.device, operands.dtype
    rows, room = request.x.shape[0], min(request.n_columns, plan.row_room)
    rooms = torch.full((rows,), room, dtype=torch.int32, device=device)
    conditions: list[Tensor | None] = [None]
    if request.band:
        conditions.append(torch.full((), request.band / 2, dtype=dtype, device=device))
    found = [_Found.slots(operands, rooms, rows * room, reach) for reach in conditions]
    _collect(request, operands, plan, found)
    codes = _codes(request, operands, plan, found, room)
    return Selection(
        codes[0],
        band=codes[1] if request.band else None,
        attribution_mean=None if operands.mean is None else operands.mean.to(request.x.dtype),
    )


def _collect(request: SelectRequest, operands: Operands, plan: SelectPlan, found: list[_Found]) -> None:
    """Fills `found` in one pass of products."""
    assert request.theta is not None
    theta = request.theta.expand(request.W_enc.shape[1])
    theta = request.of_columns(theta).contiguous()
    tiles = ExactTiles(operands, plan)
    for start in range(0, operands.rows, plan.height):
        height = min(plan.height, operands.rows - start)
        for first, tile, effect in tiles.products(start):
            for into in found:
                threshold_kernel[(height,)](
                    tile, effect, operands.bias, operands.scale, operands.weight, theta, into.reach,
                    into.z, into.column, into.starts, into.room, into.count, start, first, tile.shape[1],
                    PRODUCT=operands.product, CHUNK=plan.chunk, **launch_options(),
                )  # fmt: skip


def _codes(
    request: SelectRequest, operands: Operands, plan: SelectPlan, found: list[_Found], room: int
) -> list[SparseCode]:
    """Codes of what was found; what found no room is collected again."""
    if capturing(request.x):
        return [_packed(request, plan, into, room, None) for into in found]
    rows = operands.rows
    counts = torch.stack([into.count for into in found])
    most, totals = [0] * len(found), [0] * len(found)
    if rows:
        numbers = torch.stack([counts.max(dim=1).values.to(torch.int64), counts.sum(dim=1)])
        most, totals = numbers.tolist()
    again = [
        _Found.slots(operands, into.count, total, into.reach) if widest > room else None
        for into, widest, total in zip(found, most, totals, strict=True)
    ]
    if repeated := [into for into in again if into is not None]:
        _collect(request, operands, plan, repeated)
    return [
        _packed(request, plan, first, room, total)
        if second is None
        else ragged_code(request, second.z, second.column, running_sums(second.count), None)
        for first, second, total in zip(found, again, totals, strict=True)
    ]


def _packed(
    request: SelectRequest, plan: SelectPlan, into: _Found, room: int, total: int | None
) -> SparseCode:
    """Slots of equal width as a ragged code of `total` pairs, or of the slots' capacity where that is not known."""
    rows = into.count.shape[0]
    stored = into.count.clamp_max(room)
    offsets = running_sums(stored)
    capacity = rows * room if total is None else total
    z, column = into.z.new_zeros(capacity), into.column.new_zeros(capacity)
    slots = (None, into.z.view(rows, room), into.column.view(rows, room))
    copy_rows(slots, (z, column), offsets[:-1], stored, None, plan.list_block)
    overflow = (into.count > room).any() if total is None else None
    return ragged_code(request, z, column, offsets, overflow)
