"""Gradients of some features that are found by dense products: AuxK, where each token keeps a large share of few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from saelab_kernels.adam_state import Weights
from saelab_kernels.backends.cpu.tiles import numbers
from saelab_kernels.backends.stock_dense import is_dense
from saelab_kernels.backends.stock_gradients import stock_gradients
from saelab_kernels.buffers import GradientBuffers, GradientTerm


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
    d_sae, (d_in, d_out) = weights.W_dec.shape[0], (weights.W_enc.shape[0], weights.W_dec.shape[1])
    named = torch.cat([term.features for term in terms if term.features is not None]).unique()
    row_of = torch.full((d_sae,), -1, dtype=torch.int32)
    row_of[named] = torch.arange(len(named), dtype=torch.int32)
    total = GradientBuffers.for_shapes(d_in, len(named), d_out, dtype=weights.W_dec.dtype)
    for term in terms:
        assert term.features is not None
        directions = weights.W_dec.detach().index_select(0, term.features)
        part = GradientBuffers.for_shapes(d_in, len(term.features), d_out, dtype=weights.W_dec.dtype)
        stock_gradients(term, directions, part, False, "both")
        places = row_of[term.features].long()
        total.W_dec.index_add_(0, places, part.W_dec)
        total.W_enc.t().index_add_(0, places, part.W_enc.t())
        total.b_enc.index_add_(0, places, part.b_enc)
    return FeatureRows(numbers(row_of), numbers(total.W_dec), numbers(total.W_enc.t()), numbers(total.b_enc))
