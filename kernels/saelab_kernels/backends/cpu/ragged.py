"""Chosen pairs put into the order of the rows, and the code that they are."""

from __future__ import annotations

import numpy as np
import torch

from saelab_kernels.backends.cpu.compiled import loop
from saelab_kernels.backends.cpu.tiles import numbers
from saelab_kernels.code import SparseCode
from saelab_kernels.request import SelectRequest
from saelab_kernels.shapes import Float, Int, Tensor


def code_from_columns(
    values: Float[Tensor, "n width"], tokens: Int[Tensor, "n width"], request: SelectRequest
) -> SparseCode:
    """The ragged code of the tokens that each ranked feature picked; an entry with value 0 is none."""
    rows = request.x.shape[0]
    offsets = torch.zeros(rows + 1, dtype=torch.int64)
    picked, features = numbers(values), numbers(_feature_numbers(request))
    _count_tokens(picked, numbers(tokens), numbers(offsets))
    total = int(offsets[rows])
    out_values, out_columns = values.new_empty(total), torch.empty(total, dtype=torch.int32)
    _fill_by_token(
        picked,
        numbers(tokens),
        features,
        numbers(offsets[:-1].clone()),
        numbers(out_values),
        numbers(out_columns),
    )
    return SparseCode(out_values, out_columns, request.W_enc.shape[1], offsets)


def code_from_pairs(
    rows: np.ndarray, columns: np.ndarray, values: np.ndarray, request: SelectRequest
) -> SparseCode:
    """The ragged code of pairs in row-major order, columns counted among the ranked ones."""
    offsets = np.zeros(request.x.shape[0] + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=request.x.shape[0]), out=offsets[1:])
    chosen = torch.from_numpy(columns)
    if request.columns is not None:
        chosen = request.columns[chosen.long()].to(torch.int32)
    return SparseCode(torch.from_numpy(values), chosen, request.W_enc.shape[1], torch.from_numpy(offsets))


@loop
def row_major_order(rows, n_rows):
    """The stable order of pairs by row, int64: entry i of the result is the place of the i-th pair."""
    places = np.zeros(n_rows + 1, np.int64)
    for row in rows:
        places[row + 1] += 1
    for r in range(n_rows):
        places[r + 1] += places[r]
    order = np.empty(rows.shape[0], np.int64)
    for i in range(rows.shape[0]):
        order[places[rows[i]]] = i
        places[rows[i]] += 1
    return order


def _feature_numbers(request: SelectRequest) -> Int[Tensor, " n"]:
    """int32; the feature of each ranked column."""
    if request.columns is None:
        return torch.arange(request.W_enc.shape[1], dtype=torch.int32)
    return request.columns.to(torch.int32)


@loop
def _count_tokens(values, tokens, offsets):
    """Row offsets of the code, from the pairs of each feature."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            if values[i, j] != 0:
                offsets[tokens[i, j] + 1] += 1
    for r in range(offsets.shape[0] - 1):
        offsets[r + 1] += offsets[r]


@loop
def _fill_by_token(values, tokens, features, places, out_values, out_columns):
    """Writes the pairs by token, inside a token by rising place among the ranked features."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            if values[i, j] != 0:
                token = tokens[i, j]
                out_values[places[token]] = values[i, j]
                out_columns[places[token]] = features[i]
                places[token] += 1
