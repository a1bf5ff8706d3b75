import pytest
import torch

from saelab.training.config import Schedule
from saelab.training.initialise import geometric_median, initial_parameters, shorten
from saelab.training.optimiser import lr_factor

D_IN, D_SAE = 8, 20


def test_the_learning_rate_rises_stays_and_falls_linearly(make_config):
    config = make_config(steps=100, schedule=Schedule(warmup_share=0.1, decay_share=0.2))
    factors = [lr_factor(step, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:80] == [1.0] * 71
    assert factors[90] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.05)


def test_the_geometric_median_ignores_far_points_and_solves_known_cases():
    square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    torch.testing.assert_close(geometric_median(square), torch.tensor([1.0, 1.0]))
    line = torch.cat([torch.zeros(3, 1), torch.full((2, 1), 1000.0)])
    assert geometric_median(line).abs() < 1e-2
    assert torch.equal(geometric_median(torch.ones(5, 3)), torch.ones(3))


def test_initial_weights_are_tied_unit_directions_around_the_median():
    sample = torch.randn(500, D_IN, generator=torch.Generator().manual_seed(3)) + 5
    params = initial_parameters(sample, sample, D_SAE, seed=7, tied=True)
    torch.testing.assert_close(params.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert torch.equal(params.W_enc, params.W_dec.T)
    assert params.W_enc.T.is_contiguous()
    assert torch.equal(params.b_dec, geometric_median(sample))
    again = initial_parameters(sample, sample, D_SAE, seed=7, tied=True)
    assert torch.equal(again.W_dec, params.W_dec)
    assert not torch.equal(initial_parameters(sample, sample, D_SAE, seed=8, tied=True).W_dec, params.W_dec)


def test_a_shortened_encoder_gives_the_best_multiple_of_the_first_reconstruction():
    x = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)) + 3
    params = initial_parameters(x, x, 96, seed=0, tied=True)
    direction = params.W_enc / torch.linalg.vector_norm(params.W_enc)
    shorten(params, x)
    assert torch.allclose(params.W_enc / torch.linalg.vector_norm(params.W_enc), direction)
    centred = x - params.b_dec
    found = (centred @ params.W_enc).relu() @ params.W_dec
    errors = [float(((centred - factor * found) ** 2).sum()) for factor in (0.99, 1.0, 1.01)]
    assert errors[1] < min(errors[0], errors[2])
