"""`PerToken`: the largest of each token, by plain, scaled or attributed scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from saelab_kernels.backends.cpu.half import largest_by_halves, pays, scored_again
from saelab_kernels.backends.cpu.largest import finish_rows, scan_tile
from saelab_kernels.backends.cpu.search import Search, feature_rows_of
from saelab_kernels.backends.cpu.tiles import Lists, numbers
from saelab_kernels.backends.cpu.workers import run_blocks
from saelab_kernels.backends.stock_tiles import joined_means, score_tiles
from saelab_kernels.code import SparseCode
from saelab_kernels.request import Selection, SelectRequest
from saelab_kernels.rules import PerToken
from saelab_kernels.shapes import Int, Tensor

SCORED_ROWS = 32
"""Rows of whole scores that one thread selects at a time."""
SPARE_CANDIDATES = 8
"""Candidates beyond the budget where a float32 product only prepares the float32 sums that count."""


def select_per_token(request: SelectRequest, rule: PerToken, halves: bool) -> Selection:
    """By plain scores: a uniform code of width `min(k, columns)`; by `halves` where that pays."""
    n = request.n_columns
    width = min(rule.k, n)
    search = Search(
        units=request.x.detach().contiguous(),
        others=feature_rows_of(request),
        other_offsets=request.of_columns(request.b_enc).detach().contiguous(),
        unit_offsets=None,
        budgets=_budgets(request, width),
        sort=request.sort,
        boundary=request.boundary,
    )
    found = _by_halves(search, width) if halves and pays(search.units, n, width) else _largest(search, width)
    values, columns, following = found
    code = _code(request, values, columns)
    return Selection(code, boundary=following if request.boundary else None)


def select_scored_per_token(request: SelectRequest, rule: PerToken, halves: bool) -> Selection:
    """By scaled or attributed scores: whole rows of scores from stock operators, then the same lists."""
    attribution = request.attribution
    if attribution is not None and attribution.mode == "add" and attribution.beta == 0:
        # The plain scores, so the same bits as without gradients; only the means are wanted beside them.
        plain = select_per_token(replace(request, attribution=None), rule, halves)
        found = [tile.attribution_mean for tile in score_tiles(request) if tile.attribution_mean is not None]
        return replace(plain, attribution_mean=joined_means(request, found))
    n = request.n_columns
    width, extra = min(rule.k, n), int(request.boundary)
    budgets = _budgets(request, width)
    values, columns, following = _room(request.x, width)
    zeros = np.zeros(n, numbers(following).dtype)
    means: list[Tensor] = []
    for tile in score_tiles(request):
        part = slice(tile.start, tile.start + tile.score.shape[0])
        scores, kept = numbers(tile.score), numbers(budgets[part])
        out = [numbers(t[part]) for t in (values, columns, following)]

        def block(index: int, scores=scores, kept=kept, out=out) -> None:
            here = slice(index * SCORED_ROWS, min((index + 1) * SCORED_ROWS, scores.shape[0]))
            lists = Lists(SCORED_ROWS, width + extra, n, request.x.dtype)
            scan_tile(scores[here], zeros, None, 0, kept[here] + extra, *lists.arrays)
            finish_rows(kept[here], request.sort, bool(extra), *lists.held, *(o[here] for o in out))

        run_blocks(block, -(-scores.shape[0] // SCORED_ROWS))
        values[part] = tile.z.gather(1, columns[part].long()).where(values[part] != 0, 0)
        if tile.attribution_mean is not None:
            means.append(tile.attribution_mean)
    code = _code(request, values, columns)
    boundary = following if request.boundary else None
    return Selection(code, boundary=boundary, attribution_mean=joined_means(request, means))


def _budgets(request: SelectRequest, width: int) -> Int[Tensor, " rows"]:
    """int64; features wanted of each token."""
    if request.budgets is None:
        return torch.full((request.x.shape[0],), width)
    return request.budgets.clamp_max(request.n_columns)


def _code(request: SelectRequest, values: Tensor, columns: Tensor) -> SparseCode:
    """The code of columns that are counted among the ranked ones."""
    if request.columns is not None and request.n_columns:
        columns = request.columns[columns].to(torch.int32)
    return SparseCode(values, columns, request.W_enc.shape[1])


def _largest(search: Search, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values and columns `[rows, width]` of every token, and the scores that follow `[rows]`."""
    out = _room(search.units, width)
    arrays = [numbers(tensor) for tensor in out]

    def block(index: int) -> None:
        values, columns, following = (array[search.rows_of(index)] for array in arrays)
        search.run(index, (values, columns, following))

    run_blocks(block, search.blocks)
    return out


def _by_halves(search: Search, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same from products in bfloat16; rows of which these say too little from products in float32.

    Both give the sums of `half_scan.score_again`, so which of the two a row went through leaves no trace.
    """
    *out, failed = largest_by_halves(search, width)
    rows = failed.nonzero().squeeze(1)
    if len(rows):
        again = _again_in_float32(search, rows, width)
        for tensor, part in zip(out, again, strict=True):
            tensor[rows] = part
    return out[0], out[1], out[2]


def _again_in_float32(
    search: Search, rows: Int[Tensor, " some"], width: int
) -> tuple[Tensor, Tensor, Tensor]:
    n = search.others.shape[0]
    budgets = search.budgets[rows]
    more = replace(
        search,
        units=search.units[rows],
        budgets=(budgets + SPARE_CANDIDATES).clamp_max(n),
        sort=False,
        boundary=False,
    )
    candidates = _largest(more, min(width + SPARE_CANDIDATES, n))
    out = _room(more.units, width)
    scored_again(replace(search, units=more.units, budgets=budgets), candidates[0], candidates[1], out)
    return out


def _room(x: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for values and columns, and zeros for what follows."""
    rows = x.shape[0]
    return x.new_empty(rows, width), torch.empty(rows, width, dtype=torch.int32), x.new_zeros(rows)
