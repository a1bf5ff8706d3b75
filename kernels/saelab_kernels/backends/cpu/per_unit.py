"""The largest of each token (`PerToken`), and with the roles exchanged the largest of each feature (`PerFeature`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from saelab_kernels.backends.cpu.half import largest_by_halves, pays
from saelab_kernels.backends.cpu.largest import finish_rows, scan_tile
from saelab_kernels.backends.cpu.ragged import code_from_columns
from saelab_kernels.backends.cpu.tiles import TILE_ROWS, Lists, numbers, product_tiles, staged
from saelab_kernels.backends.cpu.workers import run_blocks
from saelab_kernels.backends.stock_tiles import joined_means, score_tiles
from saelab_kernels.code import SparseCode
from saelab_kernels.request import Selection, SelectRequest
from saelab_kernels.rules import PerToken
from saelab_kernels.shapes import Float, Int, Tensor

SCORED_ROWS = 32
"""Rows of whole scores that one thread selects at a time."""


def select_per_token(request: SelectRequest, rule: PerToken, halves: bool) -> Selection:
    """`PerToken` by plain scores: a uniform code of width `min(k, columns)`; by `halves` where that pays."""
    rows, n = request.x.shape[0], request.n_columns
    width = min(rule.k, n)
    budgets = torch.full((rows,), width) if request.budgets is None else request.budgets.clamp_max(n)
    values, columns, boundary = _largest_of_tokens(request, budgets, width, halves)
    if request.columns is not None and n:
        columns = request.columns[columns].to(torch.int32)
    return Selection(SparseCode(values, columns, request.W_enc.shape[1]), boundary=boundary)


def select_per_feature(request: SelectRequest) -> Selection:
    """`PerFeature` by plain scores: features pick their tokens as tokens pick features elsewhere."""
    assert request.budgets is not None
    budgets = request.of_columns(request.budgets).clamp_max(request.x.shape[0])
    width = int(budgets.max()) if budgets.shape[0] else 0
    values, tokens, boundary = _largest_of_rows(
        _feature_rows(request),
        request.x.detach(),
        request.of_columns(request.b_enc).detach(),
        request.x.new_zeros(request.x.shape[0]),
        budgets,
        width,
        sort=False,
        boundary=request.boundary,
    )
    code = code_from_columns(values, tokens, request)
    return Selection(code, boundary=boundary)


def select_scored_per_token(request: SelectRequest, rule: PerToken, halves: bool) -> Selection:
    """`PerToken` by scaled or attributed scores: whole rows of scores from stock operators, then the same lists."""
    attribution = request.attribution
    if attribution is not None and attribution.mode == "add" and attribution.beta == 0:
        # The plain scores, so the same bits as without gradients; only the means are wanted beside them.
        plain = select_per_token(replace(request, attribution=None), rule, halves)
        found = [tile.attribution_mean for tile in score_tiles(request) if tile.attribution_mean is not None]
        return replace(plain, attribution_mean=joined_means(request, found))
    rows, n = request.x.shape[0], request.n_columns
    width = min(rule.k, n)
    extra = int(request.boundary)
    budgets = torch.full((rows,), width) if request.budgets is None else request.budgets.clamp_max(n)
    values = request.x.new_empty(rows, width)
    columns = torch.empty(rows, width, dtype=torch.int32)
    following = request.x.new_zeros(rows)
    zeros = np.zeros(n, numbers(following).dtype)
    means: list[Tensor] = []
    for tile in score_tiles(request):
        score, scores, kept = tile.score, numbers(tile.score), numbers(budgets[tile.start :])
        out = [numbers(t[tile.start :]) for t in (values, columns, following)]

        def block(index: int, scores=scores, kept=kept, out=out) -> None:
            here = slice(index * SCORED_ROWS, min((index + 1) * SCORED_ROWS, scores.shape[0]))
            lists = Lists(SCORED_ROWS, width + extra, request.x.dtype)
            scan_tile(scores[here], zeros, None, 0, kept[here] + extra, *lists.arrays)
            finish_rows(kept[here], request.sort, bool(extra), *lists.held, *(o[here] for o in out))

        run_blocks(block, -(-score.shape[0] // SCORED_ROWS))
        part = slice(tile.start, tile.start + score.shape[0])
        z = tile.z.gather(1, columns[part].long())
        values[part] = z.where(values[part] != 0, 0)
        if tile.attribution_mean is not None:
            means.append(tile.attribution_mean)
    if request.columns is not None and n:
        columns = request.columns[columns].to(torch.int32)
    code = SparseCode(values, columns, request.W_enc.shape[1])
    return Selection(
        code,
        boundary=following if request.boundary else None,
        attribution_mean=joined_means(request, means),
    )


def _largest_of_tokens(
    request: SelectRequest, budgets: Int[Tensor, " rows"], width: int, halves: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values, columns among the ranked ones, and what follows, of every token."""
    x, weights = request.x.detach().contiguous(), _feature_rows(request)
    bias = request.of_columns(request.b_enc).detach().contiguous()
    how = {"sort": request.sort, "boundary": request.boundary}
    if not (halves and pays(x, request.n_columns, width)):
        return _largest_of_rows(x, weights, None, bias, budgets, width, **how)
    values, columns, following, failed = largest_by_halves(x, weights, bias, budgets, width, **how)
    rows = failed.nonzero().squeeze(1)
    if len(rows):
        again = _largest_of_rows(x[rows], weights, None, bias, budgets[rows], width, **how)
        values[rows], columns[rows] = again[0], again[1]
        following[rows] = 0 if again[2] is None else again[2]
    return values, columns, following if request.boundary else None


def _feature_rows(request: SelectRequest) -> Float[Tensor, "n d_in"]:
    """The encoder as rows, one a ranked feature, contiguous (a copy where it is not feature-major)."""
    return request.of_columns(request.W_enc.detach().t()).contiguous()


def _largest_of_rows(
    units: Float[Tensor, "units d"],
    others: Float[Tensor, "others d"],
    unit_offsets: Float[Tensor, " units"] | None,
    other_offsets: Float[Tensor, " others"],
    budgets: Int[Tensor, " units"],
    width: int,
    *,
    sort: bool,
    boundary: bool,
) -> tuple[Float[Tensor, "units width"], Int[Tensor, "units width"], Float[Tensor, " units"] | None]:
    """For each unit the `budgets` largest of `units @ others.T + offsets`, with the others' numbers."""
    count = units.shape[0]
    values = units.new_empty(count, width)
    columns = torch.empty(count, width, dtype=torch.int32)
    following = units.new_zeros(count)
    extra = int(boundary)
    wanted = numbers(budgets)
    by_column = numbers(other_offsets.contiguous())
    by_unit = None if unit_offsets is None else numbers(unit_offsets.contiguous())
    out = numbers(values), numbers(columns), numbers(following)

    def block(index: int) -> None:
        here = slice(index * TILE_ROWS, min((index + 1) * TILE_ROWS, count))
        stage = staged(units, here.start)
        lists = Lists(TILE_ROWS, width + extra, units.dtype)
        kept = np.zeros(TILE_ROWS, np.int64)
        kept[: here.stop - here.start] = wanted[here]
        for first, tile in product_tiles(stage, others):
            scan_tile(
                tile[: here.stop - here.start],
                by_column,
                None if by_unit is None else by_unit[here],
                first,
                kept[: here.stop - here.start] + extra,
                *lists.arrays,
            )
        finish_rows(kept, sort, bool(extra), *lists.held, *(o[here] for o in out))

    run_blocks(block, -(-count // TILE_ROWS))
    return values, columns, following if boundary else None
