import math

import pytest
import torch

from saelab.training.config import Schedule
from saelab.training.initialise import geometric_median, initial_parameters
from saelab.training.optimiser import ConstrainedAdam, lr_factor, normalise_rows, project_out_rows
from saelab_kernels.buffers import GradientBuffers

D_IN, D_SAE = 8, 20


def make(seed=0):
    params = initial_parameters(
        torch.randn(100, D_IN, generator=torch.Generator().manual_seed(seed)), D_SAE, seed
    )
    buffers = GradientBuffers.for_shapes(D_IN, D_SAE, D_IN)
    return params, buffers, ConstrainedAdam(params, buffers, lr=1e-2, grad_clip=1.0)


def fill(buffers, optimiser, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for tensor in (buffers.W_enc, buffers.b_enc, buffers.W_dec, optimiser.b_dec_gradient):
        tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))


def test_the_projected_gradient_is_orthogonal_to_the_rows():
    rows = torch.randn(D_SAE, D_IN, dtype=torch.float64)
    normalise_rows(rows)
    gradient = torch.randn(D_SAE, D_IN, dtype=torch.float64)
    project_out_rows(gradient, rows)
    assert (gradient * rows).sum(1).abs().max() < 1e-14


def test_decoder_rows_stay_on_the_unit_sphere():
    params, buffers, optimiser = make()
    for step in range(20):
        fill(buffers, optimiser, step)
        optimiser.step(1.0)
        assert (params.W_dec.detach().norm(dim=1) - 1).abs().max() < 1e-5


def test_a_step_is_project_clip_adam_renormalise_in_this_order():
    params, buffers, optimiser = make()
    expected = {name: tensor.detach().clone().double() for name, tensor in params.named().items()}
    m = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    v = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    for t in range(1, 6):
        fill(buffers, optimiser, t, scale=3.0)
        g = {
            "W_enc": buffers.W_enc.double().clone(),
            "b_enc": buffers.b_enc.double().clone(),
            "W_dec": buffers.W_dec.double().clone(),
            "b_dec": optimiser.b_dec_gradient.double().clone(),
        }
        g["W_dec"] -= (g["W_dec"] * expected["W_dec"]).sum(1, keepdim=True) * expected["W_dec"]
        norm = math.sqrt(sum(float(tensor.square().sum()) for tensor in g.values()))
        reported = optimiser.step(0.5)
        assert float(reported) == pytest.approx(norm, rel=1e-5)
        for name, tensor in g.items():
            tensor *= min(1.0, 1.0 / (norm + 1e-6))
            m[name] = 0.9 * m[name] + 0.1 * tensor
            v[name] = 0.999 * v[name] + 0.001 * tensor**2
            update = (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.999**t)).sqrt() + 1e-8)
            expected[name] -= 0.5 * 1e-2 * update
        expected["W_dec"] /= expected["W_dec"].norm(dim=1, keepdim=True)
        for name, tensor in params.named().items():
            torch.testing.assert_close(tensor.detach().double(), expected[name], rtol=0, atol=2e-6, msg=name)


def test_saved_moments_continue_bit_for_bit():
    params, buffers, optimiser = make()
    for step in range(3):
        fill(buffers, optimiser, step)
        optimiser.step(1.0)
    saved = {name: tensor.clone() for name, tensor in optimiser.state_tensors().items()}
    weights = {name: tensor.detach().clone() for name, tensor in params.named().items()}

    other_params, other_buffers, other = make(seed=1)
    with torch.no_grad():
        for name, tensor in other_params.named().items():
            tensor.copy_(weights[name])
    other.load_state_tensors(saved)
    for step in range(3, 6):
        fill(buffers, optimiser, step)
        optimiser.step(1.0)
        fill(other_buffers, other, step)
        other.step(1.0)
    for name, tensor in params.named().items():
        assert torch.equal(tensor, other_params.named()[name]), name


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
    params = initial_parameters(sample, D_SAE, seed=7)
    torch.testing.assert_close(params.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert torch.equal(params.W_enc, params.W_dec.T)
    assert params.W_enc.T.is_contiguous()
    assert torch.equal(params.b_dec, geometric_median(sample))
    again = initial_parameters(sample, D_SAE, seed=7)
    assert torch.equal(again.W_dec, params.W_dec)
    assert not torch.equal(initial_parameters(sample, D_SAE, seed=8).W_dec, params.W_dec)
