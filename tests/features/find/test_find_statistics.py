"""AUROC, its interval, F1 and pooling against what they are by definition."""

import numpy as np
import pytest

from saelab.features.find.statistics import Half, auroc_interval, aurocs, best_threshold, f1_at, null_maxima


def by_brute_force(score, positive):
    x, y = score[positive][:, None], score[~positive][None]
    return float(((x > y) + (x == y) / 2).mean())


@pytest.mark.parametrize("seed", range(5))
def test_aurocs_count_pairs_with_ties(seed):
    chance = np.random.default_rng(seed)
    scores = chance.integers(0, 4, (6, 40)) * (chance.random((6, 40)) < 0.6)
    scores[2] = 0
    positive = chance.random(40) < 0.3
    feature, unit = np.nonzero(scores)
    found, values = aurocs(
        feature,
        scores[feature, unit].astype(float),
        positive[unit],
        int(positive.sum()),
        int((~positive).sum()),
    )
    assert found.tolist() == [0, 1, 3, 4, 5]
    assert values == pytest.approx([by_brute_force(scores[f], positive) for f in found])
    single = auroc_interval(scores[0].astype(float), Half(positive, np.arange(40)))
    assert single.auroc == pytest.approx(by_brute_force(scores[0], positive))


def test_f1_is_that_of_the_best_threshold():
    score = np.array([0.0, 0, 1, 2, 2, 3])
    positive = np.array([False, True, False, True, False, True])
    threshold = best_threshold(score, positive)
    assert threshold == 2
    assert f1_at(score, positive, threshold) == pytest.approx(2 * 2 / (3 + 3))
    assert best_threshold(np.zeros(6), positive) == float("inf")


@pytest.mark.parametrize("per_document", [1, 8])
def test_intervals_hold_the_true_auroc_where_documents_cluster(per_document):
    chance, inside, n = np.random.default_rng(0), 0, 120 // per_document * 4
    truth = 0.760249938906524  # P(N(1, 2) > 0): two standard normals one apart
    for _ in range(400):
        positive = np.arange(n * per_document) % 2 == 0
        if per_document == 1:
            positive = np.arange(n) < n // 2
        document = np.repeat(np.arange(n), per_document)
        shared = chance.normal(size=n)[document] * np.sqrt(0.5)
        score = positive + shared + chance.normal(size=len(document)) * np.sqrt(0.5)
        interval = auroc_interval(score, Half(positive, document))
        inside += interval.low <= truth <= interval.high
    assert 0.92 <= inside / 400 <= 0.98


def test_chance_reaches_an_auroc_as_often_as_its_quantile_says():
    chance, above = np.random.default_rng(1), 0
    for seed in range(200):
        positive = chance.random(60) < 0.4
        half = Half(positive, np.arange(60))
        scores = chance.random((5, 60)) * (chance.random((5, 60)) < 0.3)
        best = max(by_brute_force(score, positive) for score in scores)
        above += best > np.quantile(null_maxima(scores, half, 99, seed), 0.95)
    assert 0.01 <= above / 200 <= 0.10
