"""`PerToken` with products in bfloat16, where the processor multiplies them several times as fast as float32.

The result is the float32 one: candidates come from rounded products, with a bound (`half_scan`), and are scored again
in float32. Inputs are centred in float32 before they are rounded where they have a common mean, since what all
rows share would take the bits that tell them apart. Rows for which the bound is of no use (numbers that are not
finite, more candidates than a list holds) are selected from float32 products.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from saelab_kernels.backends.cpu.half_scan import (
    FAILED,
    ROUNDING,
    keep_candidates,
    round_rows,
    scan_half_tile,
    score_again,
)
from saelab_kernels.backends.cpu.largest import finish_rows
from saelab_kernels.backends.cpu.search import Search
from saelab_kernels.backends.cpu.tiles import numbers, product_tiles, workspace
from saelab_kernels.backends.cpu.workers import run_blocks
from saelab_kernels.shapes import Bool, Tensor

CANDIDATES_PER_K, MORE_CANDIDATES = 6, 96
"""Places of a row's list."""
COLUMNS_PER_K = 64
"""Scoring a candidate again costs as much as many products of a matrix: not worth it among few columns."""
SHORTEST_INPUT = 128
"""Below this many numbers of an input a product in float32 is as cheap. Measured with 8,192 columns and k 32, time by
halves over time in float32: 1.18 at d_in 64, 0.85 at 128, 0.65 at 192, 0.58 at 256."""
COMMON_MEAN = 0.05
"""Share of the mean square from which a common mean is taken out; it costs one product with all weights."""
LARGEST_BLOCK, SMALLEST_BLOCK = 512, 64
"""Rows that a thread takes at a time. Any number gives the same result, since every score that counts is found again
for its row alone. Measured with 2,048 rows, d_in 768 and 16,384 columns: products in blocks of 512 rows took 57 ms, of
256 rows 72 ms."""
SUM_ROUNDING = 2.0**-23


@cache
def fast_half() -> bool:
    """Whether this processor has instructions for products of bfloat16 (avx512_bf16 or AMX)."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def pays(x: Tensor, n_columns: int, k: int) -> bool:
    """Whether selecting by halves is worth it for `k` of `n_columns`."""
    large = x.shape[1] >= SHORTEST_INPUT and n_columns >= COLUMNS_PER_K * k
    return large and x.dtype == torch.float32 and fast_half()


@dataclass(frozen=True, slots=True, eq=False)
class _Half:
    """The weights and inputs as they are multiplied."""

    weights: Tensor
    """bfloat16 `[n, d]`."""
    norms: np.ndarray
    """float32 `[n]`; norm of each feature's weights."""
    lost_share: float
    """Largest share of a norm that rounding took."""
    mean: Tensor | None
    """What is subtracted from every row."""
    offsets: np.ndarray
    """float32 `[n]`; bias, with the mean's product where one is subtracted."""
    loose: np.ndarray
    """float32 `[n]`; what rounding a product can have changed on account of the offset's size."""
    highest: np.ndarray
    """float32 `[n]`; the sum of the two."""


def largest_by_halves(search: Search, width: int) -> tuple[Tensor, Tensor, Tensor, Bool[Tensor, " rows"]]:
    """Values and columns `[rows, width]`, the scores that follow `[rows]`, and which rows have to be done otherwise."""
    x, weights, bias = search.units, search.others, search.other_offsets
    rows = x.shape[0]
    half = _prepare(x, weights, bias)
    values, columns = x.new_empty(rows, width), torch.empty(rows, width, dtype=torch.int32)
    following, failed = x.new_zeros(rows), torch.zeros(rows, dtype=torch.bool)
    out, bad = (numbers(values), numbers(columns), numbers(following)), numbers(failed)
    weight_rows, biases, wanted = numbers(weights), numbers(bias), numbers(search.budgets)
    step = max(SMALLEST_BLOCK, min(LARGEST_BLOCK, -(-rows // torch.get_num_threads())))
    places = min(CANDIDATES_PER_K * (width + 1) + MORE_CANDIDATES, weights.shape[0] + 1)

    def block(index: int) -> None:
        here = slice(index * step, min((index + 1) * step, rows))
        height = here.stop - here.start
        halves, errors = _round_inputs(x[here], half)
        ranked = wanted[here] + int(search.boundary)
        lows = numbers(workspace("lows", (step, places), torch.float32))[:height]
        candidates = numbers(workspace("candidates", (step, places), torch.int32))[:height]
        counts, limits = np.zeros(height, np.int64), np.zeros(height, np.float32)
        lists = (lows, lows.view(np.int32), candidates, counts)
        for first, tile in product_tiles(halves, half.weights):
            of_columns = (half.offsets, half.loose, half.highest, half.norms)
            scan_half_tile(tile, *of_columns, first, ranked, errors, *lists, limits)
        keep_candidates(ranked, *lists, half.norms, half.loose, errors)
        bad[here] = counts == FAILED
        counts[counts == FAILED] = 0
        score_again(numbers(x[here]), weight_rows, biases, *lists)
        finish_rows(wanted[here], search.sort, search.boundary, *lists, *(o[here] for o in out))

    run_blocks(block, -(-rows // step))
    return values, columns, following, failed


def scored_again(search: Search, values: Tensor, columns: Tensor, out: tuple[Tensor, Tensor, Tensor]) -> None:
    """The largest of given candidates by the sums that count here.

    Args:
        search: what is looked for.
        values: `[rows, width]`; 0 where there is no candidate; overwritten.
        columns: int32 `[rows, width]`, in each row rising; overwritten.
        out: values and columns `[rows, width]`, and the scores that follow `[rows]`.
    """
    counts = numbers((values != 0).sum(dim=1))
    lists = (numbers(values), numbers(values).view(np.int32), numbers(columns), counts)
    score_again(numbers(search.units), numbers(search.others), numbers(search.other_offsets), *lists)
    wanted = numbers(search.budgets)
    finish_rows(wanted, search.sort, search.boundary, *lists, *(numbers(tensor) for tensor in out))


def _prepare(x: Tensor, weights: Tensor, bias: Tensor) -> _Half:
    halves = torch.empty(weights.shape, dtype=torch.bfloat16)
    norms, lost = np.empty(weights.shape[0], np.float32), np.empty(weights.shape[0], np.float32)
    source, target = numbers(weights), numbers(halves)
    step = 512

    def block(index: int) -> None:
        here = slice(index * step, (index + 1) * step)
        round_rows(source[here], target[here], norms[here], lost[here])

    run_blocks(block, -(-weights.shape[0] // step))
    with np.errstate(invalid="ignore", over="ignore"):
        known = norms > 0  # NaN where the squares are too small: that feature is a candidate of every row
        share = float(np.max(lost[known] / norms[known], initial=0))
    mean, offsets = x.mean(dim=0), bias
    centred = float(mean.square().sum()) > COMMON_MEAN * float(x.square().mean()) * x.shape[1]
    if centred:
        offsets = torch.addmv(bias, weights, mean)
    found = numbers(offsets.contiguous())
    with np.errstate(invalid="ignore", over="ignore"):
        loose = (1.02 * ROUNDING * np.abs(found)).astype(np.float32)
        highest = found + loose
    return _Half(halves, norms, share, mean if centred else None, found, loose, highest)


def _round_inputs(rows: Tensor, half: _Half) -> tuple[Tensor, np.ndarray]:
    """A block of inputs as bfloat16, and E of each row with room for sums in float32."""
    if half.mean is not None:
        rows = torch.sub(rows, half.mean, out=workspace("centred", tuple(rows.shape), rows.dtype))
    halves = workspace("halves", tuple(rows.shape), torch.bfloat16)
    norms, lost = np.empty(rows.shape[0], np.float32), np.empty(rows.shape[0], np.float32)
    round_rows(numbers(rows), numbers(halves), norms, lost)
    sums = SUM_ROUNDING * rows.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):  # then nothing can be said of a row, and it fails
        errors = lost + norms * (1 + half.lost_share) * half.lost_share + norms * sums
        return halves, (1.01 * errors).astype(np.float32)
