"""The largest numbers of each row of a matrix that comes tile by tile, exactly, ties to the lower column.

Numbers that are not positive are never kept, so the bits of the others, read as integers, order them (NaN, made
positive, above infinity). A row's candidates stand in a short list in the order of their columns. What is not
above the list's limit is passed over 64 at a time; when the list is full, only those that can still be
among the largest stay, and the limit rises to the smallest of them.
"""

from __future__ import annotations

import numpy as np

from saelab_kernels.backends.cpu.compiled import loop
from saelab_kernels.backends.cpu.lanes import LANES, above_mask, lowest_bit

LIST_FACTOR, LIST_EXTRA = 3, 32
"""A list for k numbers holds 3 k + 32. Measured with k = 32: 96 to 256 places are within 15 % of each other."""


@loop
def kth_largest_bits(bits, n, k):
    """The k-th largest of `bits[:n]`, signed integers that are not negative; 1 <= k <= n."""
    low, high = bits[0], bits[0]
    for j in range(n):
        low = min(low, bits[j])
        high = max(high, bits[j])
    unlike = low ^ high
    width = 0
    while unlike >> width:
        width += 1
    found = (low >> width) << width
    one = bits.dtype.type(1)
    while width > 0:
        width -= 1
        tried = found | (one << width)
        count = 0
        for j in range(n):
            count += bits[j] >= tried
        if count >= k:
            found = tried
            if count == k:
                # Whatever lies between is no number of the list: the smallest of these k is the k-th.
                smallest = high
                for j in range(n):
                    if bits[j] >= tried:
                        smallest = min(smallest, bits[j])
                return smallest
    return found


@loop
def infinity_bits(bits):
    """The bits of infinity in the type whose numbers `bits` are."""
    one = np.empty(1, bits.dtype)
    if bits.itemsize == 4:
        one.view(np.float32)[0] = np.inf
    else:
        one.view(np.float64)[0] = np.inf
    return one[0]


@loop
def keep_largest(values, bits, columns, n, k):
    """Keeps the k largest of n > k candidates in place and in their order, of equal ones the earlier.

    Returns the k-th largest's bits.
    """
    kth = kth_largest_bits(bits, n, k)
    above = 0
    for j in range(n):
        above += bits[j] > kth
    ties = k - above
    kept = 0
    for j in range(n):
        value, column, key = values[j], columns[j], bits[j]
        equal = key == kth
        keep = (key > kth) or (equal and ties > 0)
        ties -= equal
        values[kept] = value
        columns[kept] = column
        kept += keep
    return kth


@loop
def _seed(row, offsets, first, n, k, maxima, maxima_bits):
    """Bits that at least k of the first n numbers reach, or 0: the k-th largest of the maxima of groups."""
    groups = (2 * k + LANES - 1) // LANES * LANES
    if 2 * groups > n:
        return maxima_bits.dtype.type(0)
    for j in range(groups):
        maxima[j] = 0
    for start in range(0, n - groups + 1, groups):
        for j in range(groups):
            maxima[j] = max(maxima[j], row[start + j] + offsets[first + j + start])
    for j in range(groups):
        if maxima[j] != maxima[j]:
            maxima[j] = 0
    return kth_largest_bits(maxima_bits, groups, k)


@loop
def scan_tile(tile, offsets, row_offsets, first, budgets, values, bits, columns, counts, limits, limit_bits):
    """Adds a tile's candidates to the lists of its rows.

    Args:
        tile: `[rows, n]`; may be overwritten.
        offsets: `[all columns]`; added to the tile's numbers, by column.
        row_offsets: `[rows]`, added by row, or None.
        first: number of the tile's first column; 0 begins new lists.
        budgets: `[rows]`; numbers wanted of each row, less than a list has places.
        values, bits, columns: `[rows, places]` lists; `bits` is the same memory as `values`, as integers.
        counts: `[rows]`; length of each list.
        limits, limit_bits: `[rows]`; only what is above can still be wanted; one memory, as numbers and as bits.
    """
    rows, n = tile.shape
    whole = n // LANES * LANES
    places = values.shape[1]
    positive = np.iinfo(bits.dtype).max
    infinite = infinity_bits(bits)
    maxima = np.empty(n, values.dtype)
    maxima_bits = maxima.view(bits.dtype)
    for r in range(rows):
        row, k = tile[r], budgets[r]
        if k == 0:
            counts[r] = 0
            continue
        value_list, bit_list, column_list = values[r], bits[r], columns[r]
        if row_offsets is not None:
            for j in range(n):
                row[j] += row_offsets[r]
        if first == 0:
            counts[r] = 0
            # Strictly above the bits before: the seed itself is among the largest.
            limit_bits[r] = max(_seed(row, offsets, first, n, k, maxima, maxima_bits) - 1, 0)
        count, limit = counts[r], limits[r]
        for start in range(0, n, LANES):
            if start < whole:
                mask = above_mask(row, offsets, start, first + start, limit)
            else:
                mask = np.uint64(0)
                for j in range(start, n):
                    if not (row[j] + offsets[first + j] <= limit):
                        mask |= np.uint64(1) << np.uint64(j - start)
            while mask:
                j = start + lowest_bit(mask)
                mask &= mask - np.uint64(1)
                score = row[j] + offsets[first + j]
                value_list[count] = score
                bit_list[count] &= positive  # a NaN may have a sign, which must not order it
                column_list[count] = first + j
                count += not (score <= limit)
                if count == places:
                    # A limit that is NaN would let everything pass; above infinity only NaN is left.
                    limit_bits[r] = min(keep_largest(value_list, bit_list, column_list, count, k), infinite)
                    limit, count = limits[r], k
        counts[r] = count


@loop
def finish_rows(
    budgets, sort, boundary, values, bits, columns, counts, out_values, out_columns, out_boundary
):
    """Writes the largest of each list: `budgets[r]` of them, by falling score if `sort`, and the next one.

    Args:
        budgets: `[rows]`; numbers to write of each row, at most the width of the output.
        sort: by falling score, of equal ones the lower column first; else by column.
        boundary: whether the lists were filled for one more than the budget, which is written to `out_boundary`.
        values, bits, columns, counts: the lists of `scan_tile`.
        out_values, out_columns: `[rows, width]`; what is left over becomes value 0 and column 0.
        out_boundary: `[rows]`, the score after the last one written, 0 where there is none.
    """
    width = out_values.shape[1]
    for r in range(out_values.shape[0]):
        k, count = budgets[r], counts[r]
        value_list, column_list = values[r], columns[r]
        wanted = k + 1 if boundary else k
        if count > wanted:
            if wanted > 0:
                keep_largest(value_list, bits[r], column_list, count, wanted)
            count = wanted
        if sort or boundary:
            _sort_falling(value_list, bits[r], column_list, count)
        if boundary:
            out_boundary[r] = value_list[k] if count > k else 0
            count = min(count, k)
        for j in range(count):
            out_values[r, j] = value_list[j]
            out_columns[r, j] = column_list[j]
        for j in range(count, width):
            out_values[r, j] = 0
            out_columns[r, j] = 0


@loop
def _sort_falling(values, bits, columns, n):
    """Sorts candidates by falling bits, stably: runs by insertion, then merged."""
    run = 32
    for begin in range(0, n, run):
        for j in range(begin + 1, min(begin + run, n)):
            value, key, column = values[j], bits[j], columns[j]
            p = j
            while p > begin and bits[p - 1] < key:
                values[p] = values[p - 1]
                columns[p] = columns[p - 1]
                p -= 1
            values[p] = value
            columns[p] = column
    if n <= run:
        return
    value_copy, column_copy = np.empty(n, values.dtype), np.empty(n, columns.dtype)
    key_copy = value_copy.view(bits.dtype)
    while run < n:
        value_copy[:] = values[:n]
        column_copy[:] = columns[:n]
        for begin in range(0, n, 2 * run):
            middle, end = min(begin + run, n), min(begin + 2 * run, n)
            left, right = begin, middle
            for j in range(begin, end):
                if right >= end or (left < middle and key_copy[left] >= key_copy[right]):
                    source = left
                    left += 1
                else:
                    source = right
                    right += 1
                values[j] = value_copy[source]
                columns[j] = column_copy[source]
        run *= 2
