"""How well a sparse score separates two sets: AUROC with its variance over documents, F1, and what chance gives.

A score is given by its entries above 0; all other units have 0 and are tied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054


class Interval(NamedTuple):
    """An AUROC with its 95 % interval."""

    auroc: float
    low: float
    high: float


@dataclass(frozen=True)
class Half:
    """The units of one half, renumbered from 0."""

    positive: NDArray[np.bool_]
    """Label of each unit ``[n]``."""
    document: NDArray[np.int64]
    """Number of each unit's document within the half, ascending from 0 ``[n]``."""


def aurocs(
    feature: NDArray[np.int64],
    value: NDArray[np.float64],
    positive: NDArray[np.bool_],
    n_pos: int,
    n_neg: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the features that have entries, and the AUROC of each: P(positive > negative) + P(equal) / 2.

    Args:
        feature: Feature of each entry.
        value: Its value, above 0.
        positive: Label of the entry's unit.
        n_pos: Positive units in all.
        n_neg: Negative units in all.
    """
    if not len(feature):
        return feature, np.zeros(0)
    order = np.lexsort((value, feature))
    f, v, p = feature[order], value[order], positive[order].astype(np.float64)
    new_feature = np.concatenate([[True], f[1:] != f[:-1]])
    new_tie = new_feature | np.concatenate([[True], v[1:] != v[:-1]])
    ties, starts = np.flatnonzero(new_tie), np.flatnonzero(new_feature)
    pos, neg = np.add.reduceat(p, ties), np.add.reduceat(1 - p, ties)
    group = np.searchsorted(ties, starts)  # first tie of each feature
    all_pos, all_neg = np.add.reduceat(pos, group), np.add.reduceat(neg, group)
    owner = np.cumsum(new_feature[ties]) - 1
    below = np.cumsum(neg) - neg
    below = below - below[group][owner] + (n_neg - all_neg)[owner]
    wins = np.add.reduceat(pos * (below + neg / 2), group)
    wins += (n_pos - all_pos) * (n_neg - all_neg) / 2
    return f[starts], wins / (n_pos * n_neg)


def auroc_interval(score: NDArray[np.float64], half: Half) -> Interval:
    """Return the AUROC of one score with its 95 % interval.

    The variance is Obuchowski's (1997) for clustered data, with documents as clusters; where every document has one
    unit it is DeLong's (1988). The interval is made on the logit scale, so that it stays between 0 and 1. Where that
    variance is 0, as at an AUROC of 0 or 1, it says nothing, and the interval is Newcombe's score interval (Statistics
    in Medicine 25:559, 2006, method 5) for as many positives and negatives as there are documents with them. Taking
    documents for its sample sizes is this project's choice and a careful one: the interval becomes wider.

    Args:
        score: Value of every unit ``[n]``.
        half: Their labels and documents.
    """
    x, y = score[half.positive], score[~half.positive]
    m, n = len(x), len(y)
    wins, losses = _placements(x, y), 1 - _placements(y, x)
    theta = float(wins.mean())
    size = int(half.document.max()) + 1
    v10 = np.bincount(half.document[half.positive], wins - theta, size)
    v01 = np.bincount(half.document[~half.positive], losses - theta, size)
    i10 = len(np.unique(half.document[half.positive]))
    i01 = len(np.unique(half.document[~half.positive]))
    if min(i10, i01) < 2:
        return Interval(theta, 0.0, 1.0)
    s10, s01 = (v10**2).sum() * i10 / (i10 - 1) / m, (v01**2).sum() * i01 / (i01 - 1) / n
    s11 = (v10 * v01).sum() * size / (size - 1)
    variance = s10 / m + s01 / n + 2 * s11 / (m * n)
    if theta in (0.0, 1.0) or variance <= 1e-20:
        return Interval(theta, *score_bounds(theta, i10, i01))
    width = Z95 * np.sqrt(variance) / (theta * (1 - theta))
    middle = np.log(theta / (1 - theta))
    low, high = 1 / (1 + np.exp(-np.clip([middle - width, middle + width], -700, 700)))
    return Interval(theta, float(low), float(high))


def score_bounds(auroc: float, m: int, n: int) -> tuple[float, float]:
    """Return Newcombe's (2006, method 5) 95 % interval of an AUROC of ``m`` positives and ``n`` negatives.

    Its ends are the values t with ``|auroc - t| = 1.96 sqrt(V(t))``, where V is the variance that Hanley and McNeil
    (1982) give for exponential scores, made symmetric in m and n.
    """

    def misses(t: float) -> bool:
        extra = (m + n) / 2 - 1
        variance = t * (1 - t) * (1 + extra * ((1 - t) / (2 - t) + t / (1 + t))) / (m * n)
        return abs(auroc - t) > Z95 * variance**0.5

    def end(outer: float) -> float:
        inner = auroc
        for _ in range(60):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if misses(middle) else (middle, outer)
        return inner

    return end(0.0), end(1.0)


def _placements(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each x the share of y below it, equal ones counted half."""
    ordered = np.sort(y)
    below, upto = np.searchsorted(ordered, x, "left"), np.searchsorted(ordered, x, "right")
    return (below + upto) / (2 * len(y))


def best_threshold(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the value above 0 from which on calling a unit positive gives the largest F1; inf where none is active."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    n_active = int((score > 0).sum())
    if not n_active:
        return float("inf")
    hits = np.cumsum(positive[order])[:n_active]
    f1 = 2 * hits / (np.arange(1, n_active + 1) + int(positive.sum()))
    last = np.concatenate([ordered[1:n_active] != ordered[: n_active - 1], [True]])  # whole ties only
    return float(ordered[int(np.argmax(np.where(last, f1, -1.0)))])


def f1_at(score: NDArray[np.float64], positive: NDArray[np.bool_], threshold: float) -> float:
    """Return 2 TP / (2 TP + FP + FN) of calling units from ``threshold`` on positive."""
    called = score >= threshold
    return float(2 * (called & positive).sum() / (called.sum() + positive.sum()))


def null_maxima(
    scores: NDArray[np.float64], half: Half, draws: int, seed: int, tick: Callable[[], None] = lambda: None
) -> NDArray[np.float64]:
    """Return the largest AUROC of some scores under each of many random placements of the positives.

    Scores stay as they are, so that chance has features of exactly the same densities. Where documents hold both
    labels, the labels are turned within each document by a random number of units, which keeps how many there are
    and how they cluster; otherwise labels change hands between documents.

    Args:
        scores: Values ``[features, n]``.
        half: Labels and documents of the units.
        draws: How many placements.
        seed: Decides them: placements are the same for other scores, so that blocks of features can be joined.
        tick: Called before each placement.
    """
    from_ranks = np.stack([_ranks(score) for score in scores])
    n_pos = int(half.positive.sum())
    n_neg = len(half.positive) - n_pos
    chance = np.random.default_rng(seed)
    sizes = np.bincount(half.document)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    per_document = np.bincount(half.document, half.positive)
    mixed = ((per_document > 0) & (per_document < sizes)).any()
    within = np.arange(len(half.positive)) - starts[half.document]
    found = np.empty(draws)
    for draw in range(draws):
        tick()
        if mixed:
            turn = chance.integers(0, sizes)
            labels = half.positive[
                starts[half.document] + (within + turn[half.document]) % sizes[half.document]
            ]
        else:
            labels = half.positive[starts][chance.permutation(len(sizes))][half.document]
        count = int(labels.sum())
        if count in (0, len(labels)):
            found[draw] = 0.5
            continue
        wins = from_ranks[:, np.flatnonzero(labels)].sum(axis=1) - count * (count + 1) / 2
        found[draw] = (wins / (count * (n_pos + n_neg - count))).max()
    return found


def _ranks(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks from 1, ties sharing their mean."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
