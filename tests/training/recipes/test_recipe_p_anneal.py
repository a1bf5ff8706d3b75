"""p-annealing: the path of p, the rescaling, gradients, and a short training."""

import pytest
import torch
from penalised_helpers import (
    VARIANCE,
    assert_export_is_the_training_forward,
    assert_resumes_exactly,
    assert_same,
    assert_short_training_reaches,
    found_gradients,
    leaves_of,
    small_case,
    small_config,
    trained_member,
)

from saelab.errors import UsageError
from saelab.training.recipes.moments import Clock, Forward, Loss
from saelab.training.recipes.p_anneal import PAnneal
from saelab_kernels.code import SparseCode


def power_at(recipe, step, steps=100):
    return recipe.power(recipe.updates_before(Clock(step, steps, 64)))


def test_p_falls_in_equal_updates_from_its_start_to_the_end():
    recipe = PAnneal(p_end=0.2, updates=4, anneal_start=0.2)
    seen = [power_at(recipe, step) for step in range(130)]
    assert seen[:20] == [1.0] * 20
    for first, p in ((20, 0.8), (40, 0.6), (60, 0.4), (80, 0.2)):
        assert seen[first : first + 20] == pytest.approx([p] * 20)
    assert seen[100:] == pytest.approx([0.2] * 30)


@pytest.mark.parametrize("step", [0, 50, 99])
def test_gradients_equal_dense_autograd(step):
    recipe = PAnneal(smallest=0.3)
    params, state, x = small_case(recipe)
    state["rescale"] = torch.tensor(1.3, dtype=torch.float64)
    clock = Clock(step, 100, len(x))
    found, moments = found_gradients(recipe, params, state, x, clock)
    p = power_at(recipe, step)
    assert (p < 1) == (step > 0)
    leaves = leaves_of(params)
    f = torch.relu((x - leaves["b_dec"]) @ leaves["W_enc"] + leaves["b_enc"])
    assert ((f > 0) & (f < 0.3)).any()
    error = x - f @ leaves["W_dec"] - leaves["b_dec"]
    powers = torch.where(f > 0.3, f.clamp_min(0.3) ** p, f * 0.3 ** (p - 1))
    loss = (error.square().sum(1) + 0.7 * 1.3 * powers.sum(1)).mean() / VARIANCE
    assert_same(found, moments, loss, leaves)


def test_an_update_rescales_by_the_last_ten_penalties():
    recipe = PAnneal(k=2, p_end=0.5, updates=1, anneal_start=0.5)
    params, state, _ = small_case(recipe)
    expected_old = expected_new = 0.0
    for step in range(30):
        dense = torch.zeros(4, 10, dtype=torch.float64)
        dense[:, 0] = float(step + 1)
        code = SparseCode.from_dense(dense)
        if step >= 20:  # the last ten before the update
            expected_old += step + 1
            expected_new += (step + 1) ** 0.5
        zero = torch.zeros(())
        found = Forward(None, code, dense, dense[:, 0], Loss(zero, {}), [], {})
        assert float(state["rescale"]) == 1.0
        state = recipe.after_step(params, found, state, Clock(step, 60, 4))
    assert float(state["rescale"]) == pytest.approx(expected_old / expected_new)
    assert not state["norms"].any()


def test_a_short_training_reaches_the_target_and_exports_itself(store, tmp_path):
    member = trained_member(store, "p-anneal", 200, tmp_path)
    assert_short_training_reaches(store, member, k=4, fvu=0.3, tolerance=0.15)
    assert_export_is_the_training_forward(store, member)
    assert float(member.recipe_state["rescale"]) != 1


def test_resumes_exactly(store, tmp_path):
    assert_resumes_exactly(store, "p-anneal", tmp_path)


def test_options_that_cannot_work_are_refused(store):
    with pytest.raises(UsageError, match="p_end must be above 0 and at most 1, not 0"):
        small_config(store, "p-anneal", 10, p_end=0.0)
    with pytest.raises(UsageError, match="needs updates >= 1"):
        small_config(store, "p-anneal", 10, updates=0)
