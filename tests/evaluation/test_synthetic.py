"""Features that are on equally often, or in exact numbers, are what they say."""

from dataclasses import replace

import pytest
import torch

from saelab.evaluation.synthetic.generator import ExactlyPlantedFeatures, PlantedFeatures


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
