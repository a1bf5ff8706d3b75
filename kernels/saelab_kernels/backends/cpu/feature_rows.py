"""Codes about some features of which each token keeps a large share (AuxK), through dense products.

The dense matrix has at most 8 times as many numbers as the code has entries: that is what makes it dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from saelab_kernels.adam_state import Weights
from saelab_kernels.backends.cpu.dense import dense
from saelab_kernels.backends.cpu.tiles import numbers
from saelab_kernels.backends.stock_dense import is_dense
from saelab_kernels.buffers import GradientTerm


class FeatureRows(NamedTuple):
    """Gradients to be added to those of the entries; all None where there are none."""

    row_of: np.ndarray | None
    """int32 `[d_sae]`; place of a feature's rows below, -1 where it has none."""
    W_dec: np.ndarray | None
    """`[n, d_out]`"""
    W_enc: np.ndarray | None
    """`[n, d_in]`"""
    b_enc: np.ndarray | None
    """`[n]`"""


def found_densely(term: GradientTerm) -> bool:
    """Whether a term is about some features, of which it keeps so many that dense products are cheaper."""
    return term.features is not None and is_dense(term.code)


def feature_rows(terms: Sequence[GradientTerm], weights: Weights) -> FeatureRows:
    """The gradients of terms that are `found_densely`, of features that occur in several added."""
    if not terms:
        return FeatureRows(None, None, None, None)
    named = torch.cat([term.features for term in terms if term.features is not None]).unique()
    row_of = torch.full((weights.W_dec.shape[0],), -1, dtype=torch.int32)
    row_of[named] = torch.arange(len(named), dtype=torch.int32)
    new = weights.W_dec.new_zeros
    W_dec = new(len(named), weights.W_dec.shape[1])
    W_enc, b_enc = new(len(named), weights.W_enc.shape[0]), new(len(named))
    for term in terms:
        assert term.features is not None
        values = dense(term.code)
        dz = torch.zeros_like(values)
        places = row_of[term.features].long()
        if term.g_out is not None:
            W_dec.index_add_(0, places, values.t() @ term.g_out)
            torch.mm(term.g_out, weights.W_dec.detach().index_select(0, term.features).t(), out=dz)
        if term.g_values is not None:
            # Padding has no gradient, and repeats the column of an entry that may have one.
            dz += dense(term.code.with_values(term.g_values.where(term.code.values > 0, 0)))
        dz.masked_fill_((values > 0).logical_not_(), 0)
        W_enc.index_add_(0, places, dz.t() @ term.x)
        b_enc.index_add_(0, places, dz.sum(dim=0))
    return FeatureRows(numbers(row_of), numbers(W_dec), numbers(W_enc), numbers(b_enc))
