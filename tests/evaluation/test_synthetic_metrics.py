"""Recovery, agreement of dictionaries and firing, against numbers made by hand."""

from itertools import combinations

import numpy as np
import pytest
import torch

from saelab.evaluation import consistency
from saelab.evaluation.consistency import max_cosines, partnered_share, partners
from saelab.evaluation.matching import maximum_matching
from saelab.evaluation.synthetic.firing import Firing, FiringAccumulator
from saelab.evaluation.synthetic.generator import PlantedFeatures
from saelab.evaluation.synthetic.recovery import feature_recovery, matched_recovery, measure_recovery
from saelab_kernels.code import SparseCode


def at_angles(*degrees, length=1.0):
    """Directions in the plane."""
    radians = torch.tensor(degrees).double().deg2rad()
    return (length * torch.stack([radians.cos(), radians.sin()], dim=1)).float()


def cosine(degrees):
    return float(np.cos(np.deg2rad(degrees)))


def test_recovery_of_a_decoder_that_holds_the_directions():
    directions = PlantedFeatures(n_features=10, d_in=30).directions()
    shuffled = 7.0 * directions[torch.randperm(10, generator=torch.Generator().manual_seed(0))]
    W_dec = torch.cat([torch.zeros(2, 30), shuffled])
    for recovery in (feature_recovery, matched_recovery):
        assert recovery(W_dec, directions, 0.9999) == 1.0
        assert recovery(W_dec[:8], directions, 0.9999) == 0.6
        assert recovery(-W_dec, directions, 0.9999) == 0.0


def test_recovery_reaches_its_threshold_at_the_planted_cosine():
    directions = torch.eye(4)[:1]
    W_dec = torch.tensor([[0.8, 0.6, 0.0, 0.0]])
    for recovery in (feature_recovery, matched_recovery):
        assert recovery(W_dec, directions, 0.79) == 1.0
        assert recovery(W_dec, directions, 0.81) == 0.0


def test_every_measure_of_recovery_by_hand():
    # Best cosines of the directions: 10 degrees to row 0, 20 to row 0, 5 to row 1; row 0 serves one only.
    directions, W_dec = at_angles(0, 30, 95), at_angles(10, 100, 250, length=3.0)
    found = measure_recovery(W_dec, directions, torch.tensor([True, True, False]))
    assert found.frr_80 == 1.0 and found.frr_90 == 1.0
    assert found.one_to_one_90 == pytest.approx(2 / 3)
    assert found.mmcs == pytest.approx((cosine(10) + cosine(20) + cosine(5)) / 3, abs=1e-6)
    assert found.mmcs_features == pytest.approx((cosine(10) + cosine(5)) / 2, abs=1e-6)
    every_row = measure_recovery(W_dec, directions)
    assert every_row.mmcs_features == pytest.approx((cosine(10) + cosine(5) + cosine(110)) / 3, abs=1e-6)
    assert measure_recovery(W_dec, at_angles(40, 136)).frr_80 == 1.0
    assert measure_recovery(W_dec, at_angles(40, 136)).frr_90 == 0.0
    assert measure_recovery(W_dec, directions, torch.zeros(3).bool()).mmcs_features == 0.0


def test_matching_uses_a_decoder_row_once():
    directions = torch.tensor([[1.0, 0.0], [0.96, 0.28]])
    W_dec = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert feature_recovery(W_dec, directions, 0.9) == 1.0
    assert matched_recovery(W_dec, directions, 0.9) == 0.5


def test_the_largest_matching_is_found_where_the_best_pair_first_misses_it():
    # Below 25.8 degrees: 0 goes with 14 and -20, 30 with 14 only. The best pair (0, 14) would leave 30 alone.
    a, b = at_angles(0, 30), at_angles(14, -20)
    assert partners(a, b, 0.9).tolist() == [1, 0]
    assert partnered_share(a, b, 0.9) == 1.0
    assert partners(a, at_angles(14, 70), 0.9).tolist() == [0, -1], "the best pair, where it costs nothing"


def brute_force(allowed):
    """The size of the largest matching, by trying all sets of pairs from large to small."""
    pairs = [tuple(pair) for pair in np.argwhere(allowed)]
    for size in range(min(allowed.shape), 0, -1):
        for chosen in combinations(pairs, size):
            if len({left for left, _ in chosen}) == len({right for _, right in chosen}) == size:
                return size
    return 0


def test_matchings_are_valid_and_as_large_as_can_be():
    draws, sizes = np.random.default_rng(0), set()
    for _ in range(150):
        n_left, n_right = draws.integers(1, 6, size=2)
        allowed = draws.random((n_left, n_right)) < draws.choice([0.2, 0.35, 0.6])
        found = maximum_matching(np.packbits(allowed, axis=1), int(n_right))
        matched = np.flatnonzero(found >= 0)
        assert allowed[matched, found[matched]].all()
        assert len(set(found[matched].tolist())) == len(matched) == brute_force(allowed)
        sizes.add(len(matched))
    assert sizes == {0, 1, 2, 3, 4, 5}


def test_a_long_chain_of_changes_is_followed_to_its_end():
    # Left i may have right i and i + 1, the last one only right 0: all 200 fit if every one moves up by one.
    n = 200
    allowed = np.zeros((n, n), dtype=bool)
    allowed[np.arange(n - 1), np.arange(n - 1)] = allowed[np.arange(n - 1), np.arange(1, n)] = True
    allowed[n - 1, 0] = True
    start = np.append(np.arange(n - 1), -1)
    found = maximum_matching(np.packbits(allowed, axis=1), n, start)
    assert found.tolist() == [*range(1, n), 0]


def test_agreement_of_two_dictionaries_by_hand():
    a, b = at_angles(0, 5, 90, 180, length=2.0), at_angles(1, 100, 230)
    best = max_cosines(a, b)
    assert best.tolist() == pytest.approx([cosine(1), cosine(4), cosine(10), cosine(50)], abs=1e-6)
    assert partnered_share(a, b) == 0.5 and partnered_share(b, a) == pytest.approx(2 / 3)
    alive_a, alive_b = torch.tensor([True, False, False, True]), torch.tensor([False, True, True])
    assert max_cosines(a, b, alive_a=alive_a).tolist() == pytest.approx([cosine(1), cosine(50)], abs=1e-6)
    assert max_cosines(a, b, alive_b=alive_b)[0].item() == pytest.approx(cosine(100), abs=1e-6)
    assert partnered_share(a, b, alive_a=alive_a) == 0.5
    assert partnered_share(a, b, alive_b=alive_b) == 0.25


def test_nothing_agrees_with_nothing():
    a, dead = at_angles(0, 90), torch.tensor([False, False])
    assert max_cosines(a, torch.zeros(3, 2)).tolist() == [0.0, 0.0]
    assert max_cosines(a, a, alive_b=dead).tolist() == [0.0, 0.0]
    assert max_cosines(a, a, alive_a=dead).shape == (0,)
    assert partnered_share(a, a, alive_b=dead) == partnered_share(a, a, alive_a=dead) == 0.0
    assert partnered_share(torch.zeros(2, 2), torch.zeros(2, 2), 0.0) == 0.0
    with pytest.raises(ValueError, match=r"threshold is -0\.5"):
        partners(a, a, -0.5)


def test_directions_of_any_length_have_their_cosines():
    a = at_angles(0, 40)
    for length in (1e-30, 1e30):
        assert max_cosines(a * length, a).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_small_tiles_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(70, 6, generator=generator), torch.randn(90, 6, generator=generator)
    best, pairs = max_cosines(a, b), partners(a, b, 0.8)
    monkeypatch.setattr(consistency, "TILE_BYTES", 7 * 4 * 90)
    assert torch.allclose(max_cosines(a, b), best, atol=1e-6)
    assert torch.equal(partners(a, b, 0.8), pairs)
    assert 20 < int((pairs >= 0).sum()) < 70


def test_precision_and_recall_of_firing_by_hand():
    # Feature 0 has latent 2, feature 2 has latent 0, feature 1 has none; in five rows in two pieces.
    coefficients = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 1], [1, 0, 0], [0, 0, 0]]).float()
    fired = torch.tensor([[0, 9, 1], [1, 9, 1], [1, 9, 1], [1, 9, 0], [1, 9, 0]]).float()
    counts = FiringAccumulator(torch.tensor([2, -1, 0]))
    for rows in (slice(0, 2), slice(2, 5)):
        counts.update(coefficients[rows], SparseCode.from_dense(fired[rows]))
    # Latent 2 fired 3 times, all right, of 4 times; latent 0 fired 4 times, once right, of 1 time.
    assert counts.result() == Firing(
        matched=2,
        precision=4 / 7,
        recall=4 / 5,
        precision_macro=(1 + 1 / 4) / 2,
        recall_macro=(3 / 4 + 1) / 2,
    )


def test_firing_without_a_match_is_not_defined():
    counts = FiringAccumulator(torch.tensor([-1, -1]))
    counts.update(torch.ones(3, 2), SparseCode.from_dense(torch.ones(3, 4)))
    assert counts.result() == Firing(
        matched=0, precision=None, recall=None, precision_macro=None, recall_macro=None
    )
    with pytest.raises(ValueError, match="3 planted rows and a code of 2"):
        counts.update(torch.ones(3, 2), SparseCode.from_dense(torch.ones(2, 4)))
