"""Gated: gradients with a held decoder, the export as a JumpReLU, and a short training."""

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
    trained_member,
)

from saelab.training.recipes.gated import Gated
from saelab_kernels.select import encode_select


def small_gated():
    """A case in which gate and magnitude disagree: open gates with magnitude 0 and the other way round."""
    recipe = Gated()
    params, state, x = small_case(recipe)
    state |= {"r_mag": 0.4 * draws(7, 10), "b_mag": draws(8, 10)}
    return recipe, params, state, x


def dense_gated(weights, x):
    c = (x - weights["b_dec"]) @ weights["W_enc"]
    gate = c + weights["b_enc"]
    magnitude = torch.relu(torch.exp(weights["r_mag"]) * c + weights["b_mag"])
    return gate, magnitude


def test_gradients_equal_dense_autograd():
    recipe, params, state, x = small_gated()
    found, moments = found_gradients(recipe, params, state, x)
    leaves = leaves_of(params, r_mag=state["r_mag"], b_mag=state["b_mag"])
    gate, magnitude = dense_gated(leaves, x)
    f = (gate > 0) * magnitude
    error = x - f @ leaves["W_dec"] - leaves["b_dec"]
    by_gate = x - torch.relu(gate) @ leaves["W_dec"].detach() - leaves["b_dec"].detach()
    loss = error.square().sum(1) + by_gate.square().sum(1) + 0.7 * torch.relu(gate).sum(1)
    assert_same(found, moments, loss.mean() / VARIANCE, leaves)


def test_the_main_loss_does_not_reach_the_gate_bias():
    """Without the other two terms nothing remains: their part is that of a dense loss without the first term."""
    recipe, params, state, x = small_gated()
    _, moments = found_gradients(recipe, params, state, x)
    leaves = leaves_of(params, r_mag=state["r_mag"], b_mag=state["b_mag"])
    gate, _ = dense_gated(leaves, x)
    by_gate = x - torch.relu(gate) @ params.W_dec - params.b_dec
    ((by_gate.square().sum(1) + 0.7 * torch.relu(gate).sum(1)).mean() / VARIANCE).backward()
    torch.testing.assert_close(moments["b_enc"], leaves["b_enc"].grad, rtol=1e-9, atol=1e-12)


def test_the_export_is_the_training_forward_where_gate_and_magnitude_disagree():
    recipe, params, state, x = small_gated()
    gate, magnitude = dense_gated(params.named() | state, x)
    expected = (gate > 0) * magnitude
    assert ((gate > 0) & (magnitude == 0)).any()
    assert ((gate <= 0) & (magnitude > 0)).any()
    form = recipe.finalise(params, state, lambda rows: [])
    assert (form.theta == 0).any()
    assert (form.theta > 0).any()
    inside = x - params.b_dec
    code = encode_select(inside, form.params.W_enc, form.params.b_enc, form.rule, theta=form.theta).code
    torch.testing.assert_close(code.dense(), expected)


def test_a_short_training_reaches_the_target_and_exports_itself(store, tmp_path):
    member = trained_member(store, "gated", 200, tmp_path)
    assert_short_training_reaches(store, member, k=4, fvu=0.2, tolerance=0.15)
    assert_export_is_the_training_forward(store, member)
    assert (member.recipe_state["r_mag"] != 0).any()


def test_resumes_exactly(store, tmp_path):
    assert_resumes_exactly(store, "gated", tmp_path)
