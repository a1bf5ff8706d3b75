"""JumpReLU: straight-through gradients in closed form and against dense autograd, and a short training."""

import math
from types import SimpleNamespace

import pytest
import torch
from penalised_helpers import (
    VARIANCE,
    assert_export_is_the_training_forward,
    assert_resumes_exactly,
    assert_same,
    assert_short_training_reaches,
    draws,
    found_gradients,
    leaves_of,
    small_case,
    small_config,
    trained_member,
)

from saelab.activations.source import StoreSource
from saelab.errors import UsageError
from saelab.training.member import make_member
from saelab.training.recipes.jumprelu import LOG_THETA, JumpReLU, threshold_gradient
from saelab.training.recipes.moments import Clock
from saelab_kernels.code import SparseCode
from saelab_kernels.rules import Threshold
from saelab_kernels.select import encode_select

BANDWIDTH = 0.8


class Jump(torch.autograd.Function):
    """`u 1[u > theta]` and `1[u > theta]` with the paper's pseudo-derivatives, dense."""

    @staticmethod
    def forward(ctx, u, theta):
        ctx.save_for_backward(u, theta)
        on = (u > theta).to(u.dtype)
        return u * on, on

    @staticmethod
    def backward(ctx, g_f, g_on):
        u, theta = ctx.saved_tensors
        near = ((u - theta).abs() < BANDWIDTH / 2).to(u.dtype)
        return g_f * (u > theta), -((theta * g_f + g_on) * near).sum(0) / BANDWIDTH


def test_gradients_equal_dense_autograd_with_the_papers_pseudo_derivatives():
    recipe = JumpReLU(bandwidth=BANDWIDTH, threshold_speed=3.0)
    params, state, x = small_case(recipe)
    state["log_theta"] = (0.05 + draws(9, 10).abs()).log() / 3
    found, moments = found_gradients(recipe, params, state, x)
    leaves = leaves_of(params, log_theta=state["log_theta"])
    theta = torch.exp(3 * leaves["log_theta"])
    u = x @ leaves["W_enc"] + leaves["b_enc"]
    near = (u - theta).abs() < BANDWIDTH / 2
    assert (near & (u <= 0)).any()
    assert (near & (u > theta)).any()
    f, on = Jump.apply(u, theta)
    error = x - f @ leaves["W_dec"] - leaves["b_dec"]
    assert_same(found, moments, (error.square().sum(1) + 0.7 * on.sum(1)).mean() / VARIANCE, leaves)


@pytest.mark.parametrize(
    ("u", "in_band"), [(0.75, True), (1.2, True), (1.6, False)], ids=["below", "above", "outside"]
)
def test_three_points_by_hand(u, in_band):
    """theta = 1, bandwidth 1; g_out = 2 along the row; an active entry costs 0.25."""
    one = torch.ones(1, 1, dtype=torch.float64)
    theta = torch.ones(1, dtype=torch.float64)
    x = torch.full((1, 1), u, dtype=torch.float64)
    found = encode_select(x, one, 0 * theta, Threshold(), theta=theta, band=1.0)
    assert found.code.values.tolist() == ([u] if u > 1 else [])
    gradient = threshold_gradient(found.band, theta, 1.0, one, 2 * one, torch.tensor(0.25))
    assert float(gradient) == (-(1 * 2 + 0.25) / 1 if in_band else 0)


def test_the_band_holds_pre_activations_that_are_not_positive():
    """theta is less than half a bandwidth: an entry at -0.1 pulls on the threshold as one above it does."""
    one = torch.ones(1, 1, dtype=torch.float64)
    theta = torch.full((1,), 0.2, dtype=torch.float64)
    band = encode_select(-0.1 * one, one, 0 * theta, Threshold(), theta=theta, band=1.0).band
    gradient = threshold_gradient(band, theta, 1.0, one, 0 * one, torch.tensor(0.25))
    assert float(gradient) == -0.25


def test_the_l0_term_does_not_reach_the_weights():
    recipe = JumpReLU(bandwidth=BANDWIDTH)
    params, state, x = small_case(recipe)
    _, with_price = found_gradients(recipe, params, state, x)
    _, without = found_gradients(recipe, params, state | {"coefficient": 0 * state["coefficient"]}, x)
    assert all(torch.equal(with_price[name], without[name]) for name in with_price)


def test_the_first_thresholds_give_the_target(store, tmp_path):
    config = small_config(store, "jumprelu", 10)
    member = make_member("state", config, StoreSource(store), tmp_path)
    x = (
        store.rows(None, "train", 0, store.n_rows(None, "train")).x
        * member.views.inputs[0].normalisation.factor
    )
    u = x @ member.params.W_enc + member.params.b_enc
    theta = config.recipe.theta(member.recipe_state)
    assert float((u > theta).double().sum(1).mean()) == pytest.approx(4, rel=0.02)
    given = small_config(store, "jumprelu", 10, first_theta=0.3)
    state = make_member("state", given, StoreSource(store), tmp_path).recipe_state
    torch.testing.assert_close(state["log_theta"], torch.full((48,), math.log(0.3) / 4))


def test_a_short_training_reaches_the_target_and_exports_itself(store, tmp_path):
    member = trained_member(store, "jumprelu", 200, tmp_path)
    assert_short_training_reaches(store, member, k=4, fvu=0.25, tolerance=0.15)
    assert_export_is_the_training_forward(store, member)
    assert member.recipe_state["log_theta"].std() > 0


def test_resumes_exactly(store, tmp_path):
    assert_resumes_exactly(store, "jumprelu", tmp_path)


def test_options_that_cannot_work_are_refused(store):
    with pytest.raises(UsageError, match="jumprelu: bandwidth must be a positive number, not 0"):
        small_config(store, "jumprelu", 10, bandwidth=0.0)


def test_all_thresholds_are_moved_by_the_error_of_l0(unchecked):
    """Half-way log theta rises by (1/4 + 3/16) e / (integral_share * steps); a fixed coefficient moves none."""
    clock = Clock(step=50, steps=100, batch=4)
    code = SparseCode.from_dense(torch.ones(4, 8))  # L0 = 8, twice the target
    found = SimpleNamespace(code=code)
    for fixed, moved in ((None, 7 / 16 * math.log(2) / (0.02 * 100)), (0.5, 0.0)):
        recipe = JumpReLU(k=4, l0_coefficient=fixed)
        state = {LOG_THETA: torch.tensor([0.1, -0.2])} | recipe.control.start(0.1)
        after = recipe.after_step(None, found, state, clock)
        before_and_after = [recipe.theta(one).log() for one in (state, after)]
        assert torch.allclose(before_and_after[1] - before_and_after[0], torch.full((2,), moved))
