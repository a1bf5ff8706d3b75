"""The two ends of a list: a tile of products is offered to it, and what was chosen is written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl

from saelab_kernels.backends.triton.select_lists import RowLists, cut_of, key_dtype, key_of, offer, staying
from saelab_kernels.backends.triton.tiles import Operands, SelectPlan, launch_options
from saelab_kernels.shapes import Float, Int, Tensor

BF16_ROUNDING = tl.constexpr(2.0**-9 * 1.01)
"""Largest relative error of a number rounded to bfloat16 (8 bits), with room for the rounding of the bound itself."""
FP32_ROUNDING = tl.constexpr(2.0**-22)
"""Four times the largest relative error of one float32 operation."""


@triton.jit
@no_type_check
def pair_score(z, effect, scale, weight, feature, token, inside, PRODUCT: tl.constexpr):
    """The score of pre-activations `z`; `effect` points to |<g, W_dec>| without its sign removed."""
    score = z
    if scale is not None:
        score = z * tl.load(scale + feature, mask=inside, other=0).to(z.dtype)
    if effect is not None:
        c = tl.abs(tl.load(effect, mask=inside, other=0).to(z.dtype))
        c = c * tl.load(weight + token, mask=inside, other=0).to(z.dtype)
        score = z * c if PRODUCT else z * (1 + c)
    return score


@triton.jit
@no_type_check
def filter_kernel(
    tile, effect, bias, scale, weight, row_error, feature_norm, score, extra, column, count, cut, lost, keep,
    first_row, first_column, width, step, capacity, limit,
    PRODUCT: tl.constexpr, ROW_IS_FEATURE: tl.constexpr, INTERVAL: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row of the tile: adds the bias, scores, offers chunk after chunk to the row's list."""
    row = tl.program_id(0)
    ACC: tl.constexpr = score.dtype.element_ty
    tile_row = tile + row.to(tl.int64) * step
    to_list = row.to(tl.int64) * capacity
    score_row = score + to_list
    column_row = column + to_list
    extra_row = None
    if extra is not None:
        extra_row = extra + to_list
    n = tl.load(count + row)
    cut_key = tl.load(cut + row)
    gone = tl.load(lost + row)
    wanted = tl.load(keep + row)
    for start in range(0, width, CHUNK):
        place = start + tl.arange(0, CHUNK)
        inside = place < width
        col = first_column + place
        feature = col
        token = first_row + row + tl.zeros((CHUNK,), tl.int32)
        if ROW_IS_FEATURE:
            feature = token
            token = col
        acc = tl.load(tile_row + place, mask=inside, other=0).to(ACC)
        shift = tl.load(bias + feature, mask=inside, other=0).to(ACC)
        z = acc + shift
        effects = None
        if effect is not None:
            effects = effect + row.to(tl.int64) * step + place
        if INTERVAL:
            norm = tl.load(feature_norm + feature, mask=inside, other=0)
            error = tl.load(row_error + row) * norm
            error += BF16_ROUNDING * tl.abs(acc) + FP32_ROUNDING * tl.abs(shift)
            low = pair_score(z - error, effects, scale, weight, feature, token, inside, PRODUCT)
            more = pair_score(z + error, effects, scale, weight, feature, token, inside, PRODUCT)
            # Where nothing is known the least value is no value: NaN and infinity must not raise the cut.
            low = tl.where(tl.abs(low) < float("inf"), low, 0)
        else:
            low = pair_score(z, effects, scale, weight, feature, token, inside, PRODUCT)
            more = z
        n, cut_key, gone = offer(
            score_row, extra_row, column_row, low, more, col, inside, n, cut_key, gone, wanted, limit, capacity,
            INTERVAL, BLOCK,
        )  # fmt: skip
    tl.store(count + row, n)
    tl.store(cut + row, cut_key)
    tl.store(lost + row, gone)


def offer_tile(
    lists: RowLists,
    operands: Operands,
    plan: SelectPlan,
    tile: Float[Tensor, "height width"],
    effect: Float[Tensor, "height width"] | None,
    place: tuple[int, int],
    rows: int,
    *,
    row_is_feature: bool = False,
) -> None:
    """Offers the first `rows` rows of an exact tile that begins at `place` (its row and column)."""
    filter_kernel[(rows,)](
        tile, effect, operands.bias, operands.scale, operands.weight, None, None,
        lists.score, lists.extra, lists.column, lists.count, lists.cut, lists.lost, lists.keep,
        *place, tile.shape[1], tile.shape[1], lists.score.shape[1], lists.limit,
        PRODUCT=operands.product, ROW_IS_FEATURE=row_is_feature, INTERVAL=False, CHUNK=plan.chunk,
        BLOCK=plan.list_block, **launch_options(),
    )  # fmt: skip


def offer_bounded_tile(
    lists: RowLists,
    operands: Operands,
    plan: SelectPlan,
    tile: Float[Tensor, "height width"],
    shift: Float[Tensor, " n"],
    error: tuple[Float[Tensor, " height"], Float[Tensor, " n"]],
    place: tuple[int, int],
    rows: int,
) -> None:
    """Offers a bfloat16 tile, which may be padded, to interval lists; `error` are the bounds of rows and features."""
    filter_kernel[(rows,)](
        tile, None, shift, operands.scale, None, *error,
        lists.score, lists.extra, lists.column, lists.count, lists.cut, lists.lost, lists.keep,
        *place, min(tile.shape[1], operands.n - place[1]), tile.shape[1], lists.score.shape[1], lists.limit,
        PRODUCT=False, ROW_IS_FEATURE=False, INTERVAL=True, CHUNK=plan.chunk, BLOCK=plan.list_block,
        **launch_options(),
    )  # fmt: skip


@triton.jit
@no_type_check
def finish_kernel(
    score, extra, column, count, budget, starts, out_key, out_z, out_column, boundary, capacity,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row: the `budget` best of a list, in its order, to the outputs from `starts` on."""
    row = tl.program_id(0).to(tl.int64)
    score += row * capacity
    column += row * capacity
    n = tl.load(count + row)
    keep = tl.load(budget + row)
    to = tl.load(starts + row)
    t, above = cut_of(score, n, keep, BLOCK)
    equals = tl.full((), 0, tl.int32)
    left = tl.zeros((BLOCK,), t.dtype)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < n
        low = tl.load(score + place, mask=inside, other=0)
        key = key_of(low)
        stays, equals = staying(key, inside & (key > 0), t, keep - above, equals)
        left = tl.maximum(left, tl.where(inside & (stays == 0), key, 0))
        z = low
        if extra is not None:
            z = tl.load(extra + row * capacity + place, mask=inside, other=0)
        at = to + tl.cumsum(stays.to(tl.int32), 0) - 1
        tl.store(out_key + at, key, mask=stays)
        tl.store(out_z + at, z, mask=stays)
        tl.store(out_column + at, tl.load(column + place, mask=inside, other=0), mask=stays)
        to += tl.sum(stays.to(tl.int32), axis=0)
    if boundary is not None:
        tl.store(boundary + row, tl.max(left, axis=0))


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """What lists ended with. Entries that no row filled have key 0, z 0 and column 0."""

    key: Int[Tensor, "*entries"]
    z: Float[Tensor, "*entries"]
    column: Int[Tensor, "*entries"]
    boundary: Int[Tensor, " units"] | None
    """Key of the best that was not chosen, where asked for."""

    @classmethod
    def allocate(
        cls, shape: tuple[int, ...], units: int | None, dtype: torch.dtype, device: torch.device
    ) -> Chosen:
        """Empty outputs of a shape, with boundaries for `units` lists or for none."""
        keys = key_dtype(dtype)
        return cls(
            key=torch.zeros(shape, dtype=keys, device=device),
            z=torch.zeros(shape, dtype=dtype, device=device),
            column=torch.zeros(shape, dtype=torch.int32, device=device),
            boundary=None if units is None else torch.zeros(units, dtype=keys, device=device),
        )


def finish(
    lists: RowLists,
    budget: Int[Tensor, " rows"],
    starts: Int[Tensor, " rows"],
    first: int,
    chosen: Chosen,
    plan: SelectPlan,
) -> None:
    """Writes the `budget` best of each list to `chosen` from its entry `starts` (int64) on.

    The lists are those of units `first` and after; a boundary is right where lists kept one more than `budget`.
    """
    finish_kernel[(budget.shape[0],)](
        lists.score, lists.extra, lists.column, lists.count, budget, starts,
        chosen.key, chosen.z, chosen.column, None if chosen.boundary is None else chosen.boundary[first:],
        lists.score.shape[1], BLOCK=plan.list_block, **launch_options(),
    )  # fmt: skip


def scores_of(keys: Int[Tensor, "*n"], dtype: torch.dtype) -> Float[Tensor, "*n"]:
    """Keys as scores of a dtype; 0 for key 0."""
    return keys.view(torch.float64 if keys.dtype == torch.int64 else torch.float32).to(dtype)
