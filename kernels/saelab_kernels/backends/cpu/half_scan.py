"""Candidates for the largest scores of a row, from products in bfloat16, with a bound that misses none.

With `x = xh + dx` and `w = wh + dw` (the halves that bfloat16 holds, and what rounding took), a row r and a feature f

    |x.w - xh.wh| <= |dx||w| + |xh||dw| <= E_r |w_f|,        E_r = |dx_r| + |xh_r| max_f(|dw_f| / |w_f|)

(Cauchy and Schwarz; derived). Both norms are computed, not estimated. The product itself is rounded to bfloat16 once
more, by at most 2^-8 of its size, which is at most the size of the score and of the offset added to it together.
So each score lies within `E_r |w_f| + 2^-8 (|score| + |offset|)` of the one at hand (E is made a hundredth larger, for
sums in float32), and nothing whose upper end is below the k-th largest lower end can be among the k largest. What
is left, some tens for k = 32, is scored again in float32 by the caller.
"""

from __future__ import annotations

import numpy as np

from saelab_kernels.backends.cpu.compiled import loop, sums
from saelab_kernels.backends.cpu.lanes import LANES, above_mask_bf16, float_of_bits, lowest_bit
from saelab_kernels.backends.cpu.largest import kth_largest_bits

ROUNDING = 2.0**-8
"""Largest relative error of rounding to bfloat16."""
SMALLEST_SQUARE = np.float32(1e-25)
"""Below this a sum of squares in float32 may have lost parts."""
FAILED = -1
"""Length of a list that could not hold all candidates: the row has to be selected in float32."""


@loop
def round_rows(rows, halves, norms, lost):
    """Writes each float32 row as bfloat16 bits, with the norms of the row and of what rounding took from it.

    Where squares are too small for float32 nothing is known of the norms: they are NaN.
    """
    bits = rows.view(np.uint32)
    for r in range(rows.shape[0]):
        _round_row(bits[r], halves[r])
        square, loss = _squares(rows[r], halves[r])
        if square < SMALLEST_SQUARE:
            for c in range(rows.shape[1]):
                if rows[r, c] != 0 or bits[r, c] << np.uint32(1) != 0:
                    square, loss = np.float32(np.nan), np.float32(np.nan)
        norms[r] = np.sqrt(square)
        lost[r] = np.sqrt(loss)


@loop
def _round_row(bits, out):
    for c in range(bits.shape[0]):
        b = bits[c]
        out[c] = np.uint16((b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@sums
def _squares(row, halves):
    """Squared norms of a row and of its difference from its bfloat16 bits; NaN or inf if any of it is."""
    square, loss = np.float32(0), np.float32(0)
    back = np.empty(row.shape[0], np.uint32)
    numbers = back.view(np.float32)
    for c in range(row.shape[0]):
        back[c] = np.uint32(halves[c]) << np.uint32(16)
    for c in range(row.shape[0]):
        square += row[c] * row[c]
        gap = row[c] - numbers[c]
        loss += gap * gap
    return square, loss


@loop
def scan_half_tile(
    tile, offsets, loose, highest, norms, first, budgets, errors, lows, bits, columns, counts, limits
):
    """Adds a tile's candidates to the lists of its rows.

    Args:
        tile: `[rows, n]` bits of products in bfloat16; a score is the number plus `offsets[first + column]`.
        offsets, loose, highest, norms: float32 `[all columns]`; added to scores; what rounding the product can have
            changed on account of the offset's size; the sum of the two; norms of the features' weights.
        first: number of the tile's first column; 0 begins new lists.
        budgets: `[rows]`; scores wanted of each row.
        errors: float32 `[rows]`; E of each row, with room for sums in float32.
        lows, bits, columns: `[rows, places]` lists; lower ends of scores, at least 0; `bits` is the same memory.
        counts: `[rows]`; length of each list, or FAILED.
        limits: float32 `[rows]`; only scores whose upper end is above can still be wanted.
    """
    rows, n = tile.shape
    places = lows.shape[1]
    for r in range(rows):
        k, error, row = budgets[r], errors[r], tile[r]
        if first == 0:
            counts[r] = 0
            limits[r] = 0  # what is surely not positive is never wanted
        if k == 0 or counts[r] == FAILED:
            continue
        count, limit = counts[r], limits[r]
        low_list, bit_list, column_list = lows[r], bits[r], columns[r]
        for start in range(0, n, LANES):
            lanes = min(LANES, n - start)
            if lanes == LANES:
                mask = above_mask_bf16(row, highest, norms, start, first + start, error, limit)
            else:
                mask = np.uint64(0)
                for j in range(lanes):
                    column = first + start + j
                    high = _number(row[start + j]) + highest[column] + error * norms[column]
                    if not (high <= limit):
                        mask |= np.uint64(1) << np.uint64(j)
            while mask and count != FAILED:
                j = start + lowest_bit(mask)
                mask &= mask - np.uint64(1)
                column = first + j
                score = _number(row[j]) + offsets[column]
                reach = error * norms[column] + loose[column]
                low = score - reach - _rounding(score)
                low_list[count] = low if low > 0 or low != low else np.float32(0)
                column_list[count] = column
                count += not (score + reach <= limit)
                if count == places:
                    count, limit = keep_possible(
                        low_list, bit_list, column_list, norms, loose, count, k, error
                    )
                    if 4 * count > 3 * places:
                        count = FAILED
            if count == FAILED:
                break
        counts[r] = count
        limits[r] = limit


@loop
def keep_possible(lows, bits, columns, norms, loose, n, k, error):
    """Keeps of n > k candidates those that can still be among the k largest; returns their number and the limit.

    Where a number among them is not finite nothing can be said: FAILED.
    """
    for j in range(n):
        if not (lows[j] < np.float32(np.inf)):
            return FAILED, np.float32(0)
    kth = float_of_bits(np.uint32(kth_largest_bits(bits, n, k)))
    limit = kth - _rounding(kth)
    kept = 0
    for j in range(n):
        low, column = lows[j], columns[j]
        lows[kept] = low
        columns[kept] = column
        # A lower end that was raised to 0 makes the upper end too high: kept once too often, never too rarely.
        high = low + 2 * (error * norms[column] + loose[column])
        kept += high + 2 * _rounding(high) > limit
    return kept, limit


@loop
def keep_candidates(budgets, lows, bits, columns, counts, norms, loose, errors):
    """Cuts each list of `scan_half_tile` once more to what can still be among the largest."""
    for r in range(lows.shape[0]):
        if counts[r] > budgets[r]:
            counts[r], _ = keep_possible(
                lows[r], bits[r], columns[r], norms, loose, counts[r], budgets[r], errors[r]
            )


@loop
def score_again(x, weights, bias, values, bits, columns, counts):
    """Replaces what stands in the lists by scores in float32; those not above 0 are dropped.

    Args:
        x: float32 `[rows, d]`, not centred.
        weights: `[all columns, d]`.
        bias: `[all columns]`.
        values, bits, columns: `[rows, places]` lists; `bits` is the same memory as `values`.
        counts: `[rows]`; length of each list.
    """
    positive = np.iinfo(bits.dtype).max
    for r in range(x.shape[0]):
        count = counts[r]
        value_list, column_list = values[r], columns[r]
        kept = 0
        for begin in range(0, count, 4):
            c0 = column_list[begin]
            c1 = column_list[min(begin + 1, count - 1)]
            c2 = column_list[min(begin + 2, count - 1)]
            c3 = column_list[min(begin + 3, count - 1)]
            z0, z1, z2, z3 = _four_products(x[r], weights[c0], weights[c1], weights[c2], weights[c3])
            for i in range(min(4, count - begin)):
                column = c0 if i == 0 else c1 if i == 1 else c2 if i == 2 else c3
                z = z0 if i == 0 else z1 if i == 1 else z2 if i == 2 else z3
                value_list[kept] = z + bias[column]
                bits[r, kept] &= positive  # a NaN may have a sign, which must not order it
                column_list[kept] = column
                kept += not (z + bias[column] <= 0)
        counts[r] = kept


@sums
def _four_products(x, w0, w1, w2, w3):
    """Four scalar products; what a product comes to does not depend on its three neighbours."""
    z0, z1, z2, z3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for c in range(x.shape[0]):
        z0 += x[c] * w0[c]
        z1 += x[c] * w1[c]
        z2 += x[c] * w2[c]
        z3 += x[c] * w3[c]
    return z0, z1, z2, z3


@loop
def _number(bits):
    """The bfloat16 number of some bits."""
    return float_of_bits(np.uint32(bits) << np.uint32(16))


@loop
def _rounding(product):
    """What rounding a number of this size to bfloat16 can have changed, with room for sums in float32."""
    return np.float32(1.02 * ROUNDING) * abs(product)
