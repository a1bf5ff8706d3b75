"""Chosen pairs put into the order of the rows, and the code that they are."""

from __future__ import annotations

import numpy as np
import torch

from saelab_kernels.backends.cpu.compiled import loop
from saelab_kernels.code import SparseCode
from saelab_kernels.request import SelectRequest


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
