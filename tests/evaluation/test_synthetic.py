"""Planted features are what they say, and recovery counts them."""

from dataclasses import replace

import pytest
import torch

from saelab.evaluation.synthetic.generator import ExactlyPlantedFeatures, PlantedFeatures
from saelab.evaluation.synthetic.recovery import feature_recovery, matched_recovery


def test_directions_have_unit_norm_and_depend_on_the_seed_only():
    planted = PlantedFeatures(n_features=50, d_in=20, seed=3)
    assert torch.allclose(planted.directions().norm(dim=1), torch.ones(50), atol=1e-6)
    assert torch.equal(
        planted.directions(), PlantedFeatures(n_features=50, d_in=20, seed=3, noise=1.0).directions()
    )
    assert not torch.equal(planted.directions(), replace(planted, seed=4).directions())


@pytest.mark.parametrize("planted", [PlantedFeatures(noise=0.1), ExactlyPlantedFeatures()])
def test_a_batch_is_a_function_of_its_index(planted):
    again = replace(planted)
    assert torch.equal(planted.batch(5, 64).x, again.batch(5, 64).x)
    assert not torch.equal(planted.batch(5, 64).x, planted.batch(6, 64).x)


def test_bernoulli_rows_are_the_stated_sums():
    planted = PlantedFeatures(mean_active=3.0)
    x, coefficients = planted.batch(0, 20_000)
    assert torch.allclose(x, coefficients @ planted.directions(), atol=1e-5)
    on = coefficients > 0
    # The number that is on is Binomial(128, 3/128): mean 3, variance 2.93; five standard errors of each.
    assert on.sum(1).double().mean().item() == pytest.approx(3.0, abs=5 * (2.93 / 20_000) ** 0.5)
    assert on.sum(1).double().var().item() == pytest.approx(2.93, abs=0.2)
    values = coefficients[on]
    assert values.min() >= 0.5 and values.max() <= 1.5
    assert values.mean().item() == pytest.approx(1.0, abs=0.01)


def test_noise_has_the_stated_size():
    clean, noisy = PlantedFeatures(), PlantedFeatures(noise=0.25)
    difference = noisy.batch(1, 5_000).x - clean.batch(1, 5_000).x
    assert difference.std().item() == pytest.approx(0.25, rel=0.02)


def test_exact_rows_have_exactly_the_stated_counts_and_unit_norm():
    x, coefficients = ExactlyPlantedFeatures(active=(3, 20)).batch(2, 100)
    assert coefficients.sum(1).tolist() == [3.0, 20.0] * 50
    assert set(coefficients.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(x.norm(dim=1), torch.ones(100), atol=1e-6)


def test_impossible_generators_are_refused():
    with pytest.raises(ValueError, match="mean_active is 0"):
        PlantedFeatures(mean_active=0)
    with pytest.raises(ValueError, match="every count must be in"):
        ExactlyPlantedFeatures(active=(3, 200))


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
    assert feature_recovery(W_dec, directions, 0.79) == 1.0
    assert feature_recovery(W_dec, directions, 0.81) == 0.0


def test_matching_uses_a_decoder_row_once():
    directions = torch.tensor([[1.0, 0.0], [0.96, 0.28]])
    W_dec = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert feature_recovery(W_dec, directions, 0.9) == 1.0
    assert matched_recovery(W_dec, directions, 0.9) == 0.5
