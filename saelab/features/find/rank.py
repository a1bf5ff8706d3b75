"""Rank features: chosen on one half of the documents, measured on the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saelab.features.find.pooled import Shards, pooled_blocks
from saelab.features.find.result import FoundFeature
from saelab.features.find.spec import FindConfig
from saelab.features.find.statistics import (
    Half,
    auroc_interval,
    aurocs,
    best_threshold,
    f1_at,
    null_maxima,
)
from saelab.features.find.units import Units


@dataclass(frozen=True)
class Ranking:
    """The candidates by held-out AUROC, without names."""

    features: tuple[FoundFeature, ...]
    """Best first."""
    n_compared: int
    """Features that were active on the selection half."""
    null_auroc_95: float
    """What the best candidate stays below in 95 % of random placements."""


@dataclass(frozen=True)
class _Candidate:
    feature: int
    selection_auroc: float
    unit: NDArray[np.int64]
    value: NDArray[np.float64]


def rank_features(shards: Shards, units: Units, d_sae: int, config: FindConfig) -> Ranking:
    """Choose candidates on the selection half and measure them on the held-out half.

    Args:
        shards: Reads the codes of the corpus from the beginning.
        units: What is told apart.
        d_sae: Number of features.
        config: Pooling, how many candidates, the null.
    """
    candidates, n_compared = _candidates(shards, units, d_sae, config)
    if not candidates:
        return Ranking((), n_compared, 0.5)
    scores = np.zeros((len(candidates), len(units.positive)))
    for place, one in enumerate(candidates):
        scores[place, one.unit] = one.value
    held = units.heldout
    _, document = np.unique(units.document[held], return_inverse=True)
    half = Half(units.positive[held], document)
    null = null_maxima(scores[:, held], half, config.draws, config.seed)
    found = [_measure(one, scores[i], units, half, null) for i, one in enumerate(candidates)]
    found.sort(key=lambda one: (-one.auroc, one.feature))
    return Ranking(tuple(found), n_compared, float(np.quantile(null, 0.95)))


def _candidates(shards: Shards, units: Units, d_sae: int, config: FindConfig) -> tuple[list[_Candidate], int]:
    """Return the features with the largest AUROC on the selection half, and how many were compared."""
    chosen = ~units.heldout
    n_pos, n_neg = int((chosen & units.positive).sum()), int((chosen & ~units.positive).sum())
    best: list[_Candidate] = []
    n_compared = 0
    for block in pooled_blocks(shards, units, d_sae, config.pool, config.pairs):
        seen = chosen[block.unit]
        unit = block.unit[seen]
        features, values = aurocs(block.feature[seen], block.value[seen], units.positive[unit], n_pos, n_neg)
        n_compared += len(features)
        order = np.lexsort((features, -values))[: config.limit]
        for feature, value in zip(features[order].tolist(), values[order].tolist(), strict=True):
            own = slice(*np.searchsorted(block.feature, [feature, feature + 1]).tolist())
            best.append(_Candidate(feature, value, block.unit[own].copy(), block.value[own].copy()))
        best = sorted(best, key=lambda one: (-one.selection_auroc, one.feature))[: config.limit]
    return best, n_compared


def _measure(
    one: _Candidate, score: NDArray[np.float64], units: Units, half: Half, null: NDArray[np.float64]
) -> FoundFeature:
    held, positive = score[units.heldout], half.positive
    threshold = best_threshold(score[~units.heldout], units.positive[~units.heldout])
    interval = auroc_interval(held, half)
    active = held > 0
    density = float(active.mean())
    return FoundFeature(
        feature=one.feature,
        name="",
        auroc=interval.auroc,
        auroc_low=interval.low,
        auroc_high=interval.high,
        p_adjusted=float((1 + (null >= interval.auroc - 1e-12).sum()) / (len(null) + 1)),
        f1=f1_at(held, positive, threshold),
        threshold=threshold,
        density=density,
        mean_positive=_mean(held[active & positive]),
        mean_negative=_mean(held[active & ~positive]),
        lift=float(active[positive].mean()) / density if density else 0.0,
        selection_auroc=one.selection_auroc,
    )


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0
