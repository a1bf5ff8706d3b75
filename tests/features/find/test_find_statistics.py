"""AUROC, its interval, F1 and pooling against what they are by definition."""

import numpy as np
import pytest

from saelab.features.find.statistics import (
    Z95,
    Half,
    auroc_interval,
    aurocs,
    best_threshold,
    f1_at,
    null_maxima,
    score_bounds,
)


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


def test_with_one_unit_a_document_the_interval_is_delong_s():
    chance = np.random.default_rng(3)
    positive = chance.random(50) < 0.4
    score = chance.integers(0, 6, 50) + positive * 1.0
    x, y = score[positive][:, None], score[~positive][None]
    kernel = (x > y) + (x == y) / 2
    auroc = kernel.mean()
    m, n = kernel.shape
    variance = kernel.mean(axis=1).var(ddof=1) / m + kernel.mean(axis=0).var(ddof=1) / n
    found = auroc_interval(score, Half(positive, np.arange(50)))
    logit = np.log(np.array(found) / (1 - np.array(found)))
    half_width = Z95 * np.sqrt(variance) / (auroc * (1 - auroc))
    assert found.auroc == pytest.approx(auroc)
    assert logit[1:] == pytest.approx([logit[0] - half_width, logit[0] + half_width])


@pytest.mark.parametrize("auroc", [0.0, 0.3, 0.5, 1.0])
def test_newcombe_s_interval_solves_its_equation(auroc):
    m, n = 8, 20
    low, high = score_bounds(auroc, m, n)
    assert low <= auroc <= high and (low, high) != (auroc, auroc)
    mirrored = score_bounds(1 - auroc, n, m)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))
    extra = (m + n) / 2 - 1
    for t in {low, high} - {0.0, 1.0}:
        variance = t * (1 - t) * (1 + extra * (1 - t) / (2 - t) + extra * t / (1 + t)) / (m * n)
        assert abs(auroc - t) == pytest.approx(Z95 * np.sqrt(variance))


def test_perfect_and_constant_scores_have_the_interval_of_their_documents():
    positive = np.repeat([True, False], [12, 20])
    document = np.concatenate([np.arange(12) // 3, 4 + np.arange(20) // 2])
    for score in (positive * 1.0, 1.0 - positive, np.zeros(32)):
        found = auroc_interval(score, Half(positive, document))
        assert found[1:] == score_bounds(found.auroc, 4, 10)
    assert auroc_interval(positive * 1.0, Half(positive, document)).high == 1


def test_a_perfect_auroc_s_interval_holds_the_truth():
    """Where samples of 10 are often told apart perfectly, the interval still holds the truth."""
    chance, inside, perfect = np.random.default_rng(5), 0, 0
    truth = 0.9661  # P(N(2.582, 2) > 0)
    for _ in range(600):
        positive = np.arange(20) < 10
        found = auroc_interval(2.582 * positive + chance.normal(size=20), Half(positive, np.arange(20)))
        inside += found.low <= truth <= found.high
        perfect += found.auroc == 1
    assert perfect > 100
    assert inside / 600 >= 0.92
