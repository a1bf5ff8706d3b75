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

from saelab_kernels.backends.cpu.half_scan import FAILED, round_rows, scan_half_tile, score_again
from saelab_kernels.backends.cpu.largest import finish_rows
from saelab_kernels.backends.cpu.tiles import numbers, product_tiles, workspace
from saelab_kernels.backends.cpu.workers import run_blocks
from saelab_kernels.shapes import Bool, Float, Int, Tensor

CANDIDATES_PER_K, MORE_CANDIDATES = 6, 96
"""Places of a row's list."""
COLUMNS_PER_K = 64
"""Scoring a candidate again costs as much as many products of a matrix: not worth it among few columns."""
COMMON_MEAN = 0.05
"""Share of the mean square from which a common mean is taken out; it costs one product with all weights."""
LARGEST_BLOCK, SMALLEST_BLOCK = 512, 64
"""Rows that a thread takes at a time. Any number gives the same result, since every score that counts is found again
for its row alone. Measured at d_in 768: products of 512 rows take two thirds of the time of those of 256."""
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
    return x.dtype == torch.float32 and n_columns >= COLUMNS_PER_K * k and fast_half()


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
    slack: np.float32
    """Largest size of an offset."""


def largest_by_halves(
    x: Float[Tensor, "rows d_in"],
    weights: Float[Tensor, "n d_in"],
    bias: Float[Tensor, " n"],
    budgets: Int[Tensor, " rows"],
    width: int,
    *,
    sort: bool,
    boundary: bool,
) -> tuple[Tensor, Tensor, Tensor, Bool[Tensor, " rows"]]:
    """Values and columns `[rows, width]`, the scores that follow `[rows]`, and which rows have to be done otherwise."""
    rows = x.shape[0]
    half = _prepare(x, weights, bias)
    values, columns = x.new_empty(rows, width), torch.empty(rows, width, dtype=torch.int32)
    following, failed = x.new_zeros(rows), torch.zeros(rows, dtype=torch.bool)
    out, bad, wanted = (
        (numbers(values), numbers(columns), numbers(following)),
        numbers(failed),
        numbers(budgets),
    )
    weight_rows, biases = numbers(weights), numbers(bias)
    step = max(SMALLEST_BLOCK, min(LARGEST_BLOCK, -(-rows // torch.get_num_threads())))
    places = CANDIDATES_PER_K * (width + 1) + MORE_CANDIDATES

    def block(index: int) -> None:
        here = slice(index * step, min((index + 1) * step, rows))
        height = here.stop - here.start
        halves, errors = _round_inputs(x[here], half)
        kept = wanted[here]
        lows = numbers(workspace("lows", (step, places), torch.float32))[:height]
        bits = lows.view(np.int32)
        places_of = numbers(workspace("candidates", (step, places), torch.int32))[:height]
        counts, limits = np.zeros(height, np.int64), np.zeros(height, np.float32)
        ranked = kept + int(boundary)
        shared = (bits, places_of, counts)
        for first, tile in product_tiles(halves, half.weights):
            scan_half_tile(
                tile, half.offsets, half.norms, first, ranked, errors, half.slack,
                lows, *shared, limits,
            )  # fmt: skip
        score_again(
            numbers(x[here]),
            weight_rows,
            biases,
            ranked,
            lows,
            *shared,
            half.norms,
            errors,
            half.slack,
        )
        bad[here] = counts == FAILED
        counts[counts == FAILED] = 0
        finish_rows(kept, sort, boundary, lows, *shared, *(o[here] for o in out))

    run_blocks(block, -(-rows // step))
    return values, columns, following, failed


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
        share = float(np.max(lost / np.maximum(norms, np.float32(1e-30)), initial=0))
    mean, offsets = x.mean(dim=0), bias
    centred = float(mean.square().sum()) > COMMON_MEAN * float(x.square().mean()) * x.shape[1]
    if centred:
        offsets = torch.addmv(bias, weights, mean)
    found = numbers(offsets.contiguous())
    slack = np.float32(np.max(np.abs(found), initial=0))
    return _Half(halves, norms, share, mean if centred else None, found, slack)


def _round_inputs(rows: Tensor, half: _Half) -> tuple[Tensor, np.ndarray]:
    """A block of inputs as bfloat16, and E of each row with room for sums in float32."""
    if half.mean is not None:
        rows = torch.sub(rows, half.mean, out=workspace("centred", tuple(rows.shape), rows.dtype))
    halves = workspace("halves", tuple(rows.shape), torch.bfloat16)
    norms, lost = np.empty(rows.shape[0], np.float32), np.empty(rows.shape[0], np.float32)
    round_rows(numbers(rows), numbers(halves), norms, lost)
    sums = SUM_ROUNDING * rows.shape[1]
    errors = lost + norms * (1 + half.lost_share) * half.lost_share + norms * sums
    return halves, (1.001 * errors).astype(np.float32)
