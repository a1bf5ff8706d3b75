import math

import pytest
import torch

from saelab.sae.zipf import ZipfFit, fit_zipf

RANKS = torch.arange(1, 2049)


def shuffled(densities, seed=0):
    return densities[torch.randperm(len(densities), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("exponent", [0.3, 0.7, 1.0, 1.6, 2.0])
@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 16.0, 512.0])
def test_an_exact_curve_is_found_again(exponent, shift):
    true = ZipfFit(exponent, shift, math.log(0.2))
    found = fit_zipf(shuffled(true.expected(RANKS)))
    assert found is not None
    assert found.exponent == pytest.approx(exponent, abs=1e-9)
    assert found.shift == shift
    assert found.log_scale == pytest.approx(math.log(0.2), abs=1e-9)


def test_the_curve_is_the_formula():
    found = ZipfFit(1.5, 2.0, math.log(0.5)).expected(torch.tensor([2.0, 7.0]))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([0.5 * 4**-1.5, 0.5 * 9**-1.5])


@pytest.mark.parametrize("exponent", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("seed", range(3))
def test_counting_noise_and_a_sagging_tail_move_the_exponent_little(exponent, seed):
    densities = ZipfFit(exponent, 4.0, math.log(0.2)).expected(RANKS)
    densities[1900:] *= torch.linspace(1.0, 0.01, 148, dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    n_tokens = 5_000_000
    counts = torch.poisson(densities * n_tokens, generator=g)
    found = fit_zipf(shuffled(counts / n_tokens, seed))
    assert found is not None
    assert found.exponent == pytest.approx(exponent, abs=0.05)
    # The tail sags below the curve, and the curve does not follow it.
    assert densities[-1] < 0.5 * found.expected(RANKS[-1:])[0]


def test_dead_features_take_no_part():
    alive = ZipfFit(1.0, 0.0, math.log(0.3)).expected(torch.arange(1, 501))
    found = fit_zipf(torch.cat([torch.zeros(500, dtype=torch.float64), alive]))
    assert found is not None
    assert found.exponent == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("exponent", "bound"), [(3.9, 2.0), (0.05, 0.3)])
def test_the_exponent_stays_within_its_bounds(exponent, bound):
    found = fit_zipf(ZipfFit(exponent, 0.0, 0.0).expected(torch.arange(1, 301)))
    assert found is not None
    assert found.exponent == bound


def test_the_constant_is_the_best_one_for_a_bounded_exponent():
    densities = ZipfFit(3.9, 0.0, 0.0).expected(torch.arange(1, 301))
    found = fit_zipf(densities, share=1.0)
    assert found is not None
    errors = densities.log() - found.expected(torch.arange(1, 301)).log()
    assert errors.mean().item() == pytest.approx(0.0, abs=1e-9)


def test_without_ten_living_features_there_is_no_curve():
    densities = torch.zeros(100)
    densities[:9] = 0.1
    assert fit_zipf(densities) is None
    densities[9] = 0.1
    assert fit_zipf(densities) is not None
    assert fit_zipf(torch.zeros(0)) is None
