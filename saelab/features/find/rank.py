"""Rank features: chosen on one half of the documents, measured on the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from saelab.features.find.pooled import Pooled, PooledCodes
from saelab.features.find.result import FoundFeature
from saelab.features.find.spec import FindConfig
from saelab.features.find.statistics import Half, auroc_interval, aurocs, best_threshold, f1_at, null_maxima
from saelab.features.find.units import Units
from saelab.features.find.watch import Shards, Watch


@dataclass(frozen=True)
class Ranking:
    """The candidates by held-out AUROC, without names."""

    features: tuple[FoundFeature, ...]
    """Best first."""
    n_compared: int
    """Features that were active on the selection half."""
    null_auroc_95: float
    """What the best candidate stays below in 95 % of random placements."""


def rank_features(
    shards: Shards, units: Units, d_sae: int, config: FindConfig, watch: Watch | None = None
) -> Ranking:
    """Choose candidates on the selection half and measure them on the held-out half.

    Args:
        shards: Reads the codes of the corpus from the beginning.
        units: What is told apart.
        d_sae: Number of features.
        config: Pooling, how many candidates, the null, memory.
        watch: Progress and stop.

    Raises:
        Interrupted: A stop was asked for.
    """
    watch = watch or Watch()
    codes = PooledCodes(
        shards=shards, units=units, d_sae=d_sae, pool=config.pool, pairs=config.pairs, watch=watch
    )
    counts = codes.counts()
    chosen, n_compared = _candidates(codes, counts, config.limit)
    if not chosen:
        return Ranking((), n_compared, 0.5)
    is_candidate = np.isin(np.arange(d_sae), list(chosen))
    measured: list[FoundFeature] = []
    best = np.full(config.draws, -np.inf)
    held = units.heldout
    _, document = np.unique(units.document[held], return_inverse=True)
    half = Half(units.positive[held], document)
    with watch.placements(config.draws * len(chosen)) as progress:
        for block in codes.blocks(np.where(is_candidate, counts, 0), "measuring"):
            for features, scores in _score_blocks(block, len(units.positive), config.pairs):
                measured += [
                    _measure(feature, chosen[feature], score, units, half)
                    for feature, score in zip(features, scores, strict=True)
                ]

                def tick(n_features: int = len(features)) -> None:
                    watch.check()
                    progress.advance(n_features)

                best = np.maximum(best, null_maxima(scores[:, held], half, config.draws, config.seed, tick))
    found = [replace(one, p_adjusted=_share_reaching(one.auroc, best)) for one in measured]
    found.sort(key=lambda one: (-one.auroc, one.feature))
    return Ranking(tuple(found), n_compared, float(np.quantile(best, 0.95)))


def _candidates(codes: PooledCodes, counts: NDArray[np.int64], limit: int) -> tuple[dict[int, float], int]:
    """Return the features with the largest AUROC on the selection half, with it, and how many were compared."""
    units = codes.units
    chosen = ~units.heldout
    n_pos, n_neg = int((chosen & units.positive).sum()), int((chosen & ~units.positive).sum())
    best: list[tuple[float, int]] = []
    n_compared = 0
    for block in codes.blocks(counts, "comparing"):
        seen = chosen[block.unit]
        unit = block.unit[seen]
        features, values = aurocs(block.feature[seen], block.value[seen], units.positive[unit], n_pos, n_neg)
        n_compared += len(features)
        best += [(-value, feature) for feature, value in zip(features.tolist(), values.tolist(), strict=True)]
        best = sorted(best)[:limit]
    return {feature: -value for value, feature in best}, n_compared


def _score_blocks(block: Pooled, n_units: int, pairs: int) -> Iterator[tuple[list[int], NDArray[np.float64]]]:
    """Yield features of a block with their values on all units ``[features, n_units]``.

    A quarter of ``pairs`` values at most, since the null makes ranks and copies of them.
    """
    features, starts = np.unique(block.feature, return_index=True)
    bounds = np.append(starts, len(block.feature))
    together = max(1, pairs // (4 * n_units))
    for first in range(0, len(features), together):
        last = min(first + together, len(features))
        own = slice(int(bounds[first]), int(bounds[last]))
        scores = np.zeros((last - first, n_units))
        scores[np.searchsorted(features, block.feature[own]) - first, block.unit[own]] = block.value[own]
        yield features[first:last].tolist(), scores


def _measure(
    feature: int, selection_auroc: float, score: NDArray[np.float64], units: Units, half: Half
) -> FoundFeature:
    held, positive = score[units.heldout], half.positive
    threshold = best_threshold(score[~units.heldout], units.positive[~units.heldout])
    interval = auroc_interval(held, half)
    active = held > 0
    density = float(active.mean())
    return FoundFeature(
        feature=feature,
        name="",
        auroc=interval.auroc,
        auroc_low=interval.low,
        auroc_high=interval.high,
        p_adjusted=1.0,
        f1=f1_at(held, positive, threshold),
        threshold=threshold,
        density=density,
        mean_positive=_mean(held[active & positive]),
        mean_negative=_mean(held[active & ~positive]),
        lift=float(active[positive].mean()) / density if density else 0.0,
        selection_auroc=selection_auroc,
    )


def _share_reaching(auroc: float, best: NDArray[np.float64]) -> float:
    return float((1 + (best >= auroc - 1e-12).sum()) / (len(best) + 1))


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0
