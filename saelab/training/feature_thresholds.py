"""A threshold for each feature at which it fires on a given share of the tokens."""

from __future__ import annotations

import torch

from saelab.sae.autoencoder import SAEParameters
from saelab.training.batch_threshold import CALIBRATION_ROWS, in_chunks
from saelab.training.recipes.moments import Rows
from saelab_kernels.code import SparseCode
from saelab_kernels.request import Selection
from saelab_kernels.rules import PerFeature, Threshold
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Float, Int, Tensor

LEAST_FIRINGS = 8
"""Firings in the sample below which a share is too small for it to tell the threshold."""


def log_thresholds(selection: Selection) -> Float[Tensor, " d_sae"]:
    """Return, for each feature, the mean of the logarithms of the smallest value kept and the largest one left out.

    The smallest kept value alone would be a biased threshold: its mean over batches gives a feature that picks m
    tokens 0.56, 0.76 and 0.84 of its share for m = 1, 2 and 3 (derived for exponential tails). NaN where a feature
    picked nothing, or had no positive value left out.

    Args:
        selection: Of the rule `PerFeature`, with its boundary.
    """
    code, boundary = selection.code, selection.boundary
    assert boundary is not None
    kept = code.values > 0
    if code.count is not None:
        kept = kept & (torch.arange(len(kept), device=kept.device) < code.count)
    columns = code.columns.long().where(kept, 0)
    values = code.values.detach().where(kept, torch.inf)
    smallest = torch.full_like(boundary, torch.inf).scatter_reduce_(0, columns, values, "amin")
    is_known = (boundary > 0) & torch.isfinite(smallest)
    return ((smallest.log() + boundary.log()) / 2).where(is_known, torch.nan)


def calibrated_feature_thresholds(
    params: SAEParameters, rows: Rows, shares: Float[Tensor, " d_sae"], n_rows: int = CALIBRATION_ROWS
) -> Float[Tensor, " d_sae"]:
    """Return thresholds at which features fire on given shares of training rows, exactly over those rows (derived).

    With N rows and the share s a feature's threshold is the geometric mean of its ``round(s N)``-th largest
    pre-activation and the next, 0 where fewer are positive. Only as many values as that are held of each feature,
    at most about twice ``k N`` and a chunk's in all.

    Args:
        params: Frozen weights.
        rows: Gives training rows as the encoder sees them.
        shares: Share of the tokens on which each feature is to fire.
        n_rows: Rows to look at, about.

    Returns:
        float32; NaN where ``s N`` is below 8, since the sample is too small to tell.
    """
    total = sum(len(tile) for tile in rows(n_rows))
    wanted = (shares.cpu().double() * total).round().long().clamp_min(1)
    largest = _Largest((wanted + 1).to(params.b_enc.device))
    for x in in_chunks(rows(n_rows)):
        largest.add(_above(x, params, largest))
    upper, lower = largest.at(wanted), largest.at(wanted + 1)
    is_known = shares.cpu().double() * total >= LEAST_FIRINGS
    return (upper * lower).sqrt().where(is_known.to(upper.device), torch.nan)


def _above(x: Tensor, params: SAEParameters, largest: _Largest) -> SparseCode:
    """Return what may be among the largest of each feature."""
    if largest.bounds is None:
        budgets = largest.wanted.clamp_max(len(x))
        return encode_select(x, params.W_enc, params.b_enc, PerFeature(), budgets=budgets).code
    bounds = largest.bounds.to(params.b_enc.dtype)
    return encode_select(x, params.W_enc, params.b_enc, Threshold(), theta=bounds).code


class _Largest:
    """The largest positive values of each feature of a stream.

    A value and its feature are one whole number, the feature in the upper half and the bits of a positive float32,
    whose order is that of the numbers, in the lower: one sort orders all.

    Args:
        wanted: How many values to keep of each feature, at least 1.
    """

    def __init__(self, wanted: Int[Tensor, " d_sae"]) -> None:
        self.wanted = wanted
        self.bounds: Float[Tensor, " d_sae"] | None = None
        """Values that can be left out already are at most so large; None before the first values."""
        self._keys = torch.empty(0, dtype=torch.int64, device=wanted.device)
        self._waiting: list[Tensor] = []
        self._room = int(wanted.sum())

    def add(self, code: SparseCode) -> None:
        """Take in the values of some more rows."""
        exact = code.trimmed()
        used = exact.values > 0
        bits = exact.values[used].float().view(torch.int32).long()
        self._waiting.append(exact.columns[used].long() << 32 | bits)
        if self.bounds is None or sum(map(len, self._waiting)) > self._room:
            self._settle()

    def at(self, places: Int[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
        """Return the value at a place, from 1, among the largest of each feature; 0 where there are not so many."""
        self._settle()
        return self._at(places.to(self._keys.device))

    def _settle(self) -> None:
        """Sort what has come, and forget what is no longer among the largest."""
        self._keys = torch.cat([self._keys, *self._waiting]).sort().values
        self._waiting = []
        features = self._keys >> 32
        ends = self._ends()
        places = ends[features] - torch.arange(len(features), device=features.device)
        self._keys = self._keys[places <= self.wanted[features]]
        self.bounds = self._at(self.wanted)

    def _ends(self) -> Int[Tensor, " d_sae"]:
        features = torch.arange(len(self.wanted), device=self._keys.device)
        return torch.searchsorted(self._keys, features + 1 << 32)

    def _at(self, places: Tensor) -> Tensor:
        ends = self._ends()
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        found = ends - places >= starts
        keys = torch.cat([self._keys, self._keys.new_zeros(1)])[(ends - places).where(found, -1)]
        return (keys & 0xFFFFFFFF).to(torch.int32).view(torch.float32).where(found, 0.0)
