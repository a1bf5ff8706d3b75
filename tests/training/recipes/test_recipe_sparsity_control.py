"""The coefficient's controller on hand-made numbers and on simulated dictionaries that answer with a delay."""

import math

import pytest
import torch

from saelab.training.recipes.moments import Clock
from saelab.training.sparsity_control import (
    COEFFICIENT,
    FIRST,
    INTEGRAL,
    SparsityControl,
    mean_l0,
)
from saelab_kernels.code import SparseCode

K, STEPS = 32.0, 500


def simulated(control, steps, delay, elasticity, first=2048.0, guess=1.0, noise=0.0):
    """L0 of each step where `log L0` follows `log first - elasticity * log(1 + 100 coefficient)`, ``delay`` steps late.

    The coefficient that gives K is `((first / K) ** (1 / elasticity) - 1) / 100`.
    """
    generator = torch.Generator().manual_seed(0)
    state, log_l0, seen = control.start(guess), math.log(first), []
    for step in range(steps):
        settled = math.log(first) - elasticity * math.log1p(100 * float(state[COEFFICIENT]))
        log_l0 += (settled - log_l0) / delay
        measured = math.exp(log_l0 + noise * float(torch.randn((), generator=generator)))
        state = state | control.after(state, torch.tensor(measured), Clock(step, steps, 2048))
        seen.append(math.exp(log_l0))
    return torch.tensor(seen)


@pytest.mark.parametrize(
    ("elasticity", "delay_share", "guess"),
    [(0.7, 0.03, 1.0), (1.0, 0.01, 100.0), (1.0, 0.03, 0.01), (2.0, 0.03, 1.0)],
)
def test_l0_comes_from_half_of_all_pairs_to_the_target_and_stays(elasticity, delay_share, guess):
    delay = delay_share * STEPS
    seen = simulated(SparsityControl(k=K, fixed=None), STEPS, delay, elasticity, guess=guess)
    second_half = seen[STEPS // 2 :]
    assert float((second_half / K).log().abs().max()) < 0.15
    assert float(seen[-1]) == pytest.approx(K, rel=0.02)
    crossings = ((second_half > K).int().diff() != 0).sum()
    assert crossings <= 3


def test_noise_of_the_batches_does_not_make_it_wander():
    seen = simulated(SparsityControl(k=K, fixed=None), STEPS, 15, 1.0, noise=0.05)
    assert float((seen[STEPS // 2 :] / K).log().abs().max()) < 0.1


def test_a_start_below_the_target_rises_to_it():
    seen = simulated(SparsityControl(k=K, fixed=None), STEPS, 15, 1.0, first=4096.0, guess=1e3)
    assert float(seen.min()) < K / 2
    assert float(seen[-1]) == pytest.approx(K, rel=0.02)


def test_an_update_has_its_closed_form():
    control = SparsityControl(k=10.0, fixed=None, gain=0.5, integral_share=0.1, approach_share=0.2)
    state = control.start(2.0)
    assert float(state[COEFFICIENT]) == 2.0
    state = control.after(state, torch.tensor(1000.0), Clock(0, 100, 64))  # the path starts here: no error
    assert float(state[COEFFICIENT]) == pytest.approx(2.0)
    assert float(state[FIRST]) == pytest.approx(math.log(1000.0))
    # Half of the way in equal factors: 1000 -> 100 at step 10 of 20; 150 is log(1.5) too much.
    state = control.after(state, torch.tensor(150.0), Clock(10, 100, 64))
    integral = math.log(2.0) + math.log(1.5) / 10
    assert float(state[INTEGRAL]) == pytest.approx(integral, rel=1e-6)
    assert float(state[COEFFICIENT]) == pytest.approx(math.exp(integral + 0.5 * math.log(1.5)), rel=1e-5)
    # Nothing is active: the error is cut at -1.
    state = control.after(state, torch.tensor(0.0), Clock(50, 100, 64))
    assert float(state[INTEGRAL]) == pytest.approx(integral - 0.1, rel=1e-6)


def test_a_fixed_coefficient_rises_linearly_and_ignores_l0():
    control = SparsityControl(k=10.0, fixed=3.0, ramp_share=0.1)
    state = control.start(7.0)
    seen = [float(state[COEFFICIENT])]
    for step in range(100):
        state = state | control.after(state, torch.tensor(500.0), Clock(step, 100, 64))
        seen.append(float(state[COEFFICIENT]))
    torch.testing.assert_close(torch.tensor(seen[:11]), 0.3 * torch.arange(11.0))
    assert seen[10:] == [3.0] * 91


def test_an_update_changes_nothing_in_place():
    control = SparsityControl(k=10.0, fixed=None)
    state = control.start(2.0)
    before = {name: tensor.clone() for name, tensor in state.items()}
    first = control.after(state, torch.tensor(150.0), Clock(3, 100, 64))
    assert all(torch.equal(state[name], before[name]) for name in before)
    again = control.after(state, torch.tensor(150.0), Clock(3, 100, 64))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_l0_counts_values_above_0():
    assert float(mean_l0(SparseCode.from_dense(torch.tensor([[1.0, 0.0, -2.0], [3.0, 4.0, 0.0]])))) == 1.5
