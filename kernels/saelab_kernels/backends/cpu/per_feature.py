"""`PerFeature`: features pick their tokens as tokens pick features elsewhere."""

from __future__ import annotations

import numpy as np
import torch

from saelab_kernels.backends.cpu.ragged import code_from_pairs, row_major_order
from saelab_kernels.backends.cpu.search import Search, feature_rows_of
from saelab_kernels.backends.cpu.tiles import numbers
from saelab_kernels.backends.cpu.workers import run_blocks
from saelab_kernels.request import Selection, SelectRequest

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Places of the features among the ranked ones, tokens, values; in the order of the features."""


def select_per_feature(request: SelectRequest) -> Selection:
    """By plain scores. A thread holds lists for 256 features and the largest of their budgets."""
    assert request.budgets is not None
    x = request.x.detach().contiguous()
    search = Search(
        units=feature_rows_of(request),
        others=x,
        other_offsets=x.new_zeros(x.shape[0]),
        unit_offsets=request.of_columns(request.b_enc).detach(),
        budgets=request.of_columns(request.budgets).clamp_max(x.shape[0]),
        sort=False,
        boundary=request.boundary,
    )
    following = x.new_zeros(search.units.shape[0])
    found: list[Pairs] = [_none(x)] * search.blocks

    def block(index: int) -> None:
        here = search.rows_of(index)
        height, width = here.stop - here.start, int(search.budgets[here].max())
        values, tokens = x.new_empty(height, width), torch.empty(height, width, dtype=torch.int32)
        search.run(index, (numbers(values), numbers(tokens), numbers(following[here])))
        features, places = (values != 0).nonzero(as_tuple=True)
        chosen = values[features, places], tokens[features, places]
        found[index] = (numbers(features + here.start), numbers(chosen[1]), numbers(chosen[0]))

    run_blocks(block, search.blocks)
    features, tokens, values = (
        (np.concatenate(part) for part in zip(*found, strict=True)) if found else _none(x)
    )
    order = row_major_order(tokens, x.shape[0])
    code = code_from_pairs(tokens[order], features[order].astype(np.int32), values[order], request)
    return Selection(code, boundary=following if request.boundary else None)


def _none(x: torch.Tensor) -> Pairs:
    return np.zeros(0, np.int64), np.zeros(0, np.int32), numbers(x.new_zeros(0))
