"""ReLU with an L1 penalty: gradients with free decoder norms, folding, and a short training."""

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

from saelab.activations.source import StoreSource
from saelab.errors import UsageError
from saelab.training.member import make_member
from saelab.training.recipes.relu import ReLU


def test_gradients_equal_dense_autograd():
    recipe = ReLU()
    params, state, x = small_case(recipe)
    found, moments = found_gradients(recipe, params, state, x)
    leaves = leaves_of(params)
    f = torch.relu(x @ leaves["W_enc"] + leaves["b_enc"])
    error = x - f @ leaves["W_dec"] - leaves["b_dec"]
    l1 = (f * leaves["W_dec"].norm(dim=1)).sum(1)
    assert_same(found, moments, (error.square().sum(1) + 0.7 * l1).mean() / VARIANCE, leaves)


def test_finalise_folds_norms_without_changing_the_output():
    recipe = ReLU()
    params, state, x = small_case(recipe)
    form = recipe.finalise(params, state, lambda rows: [])
    folded = form.params
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(10, dtype=torch.float64))
    assert float(form.theta) == 0
    before = torch.relu(x @ params.W_enc + params.b_enc)
    after = torch.relu(x @ folded.W_enc + folded.b_enc)
    torch.testing.assert_close(after, before * params.W_dec.norm(dim=1))
    torch.testing.assert_close(after @ folded.W_dec, before @ params.W_dec)


def test_the_first_weights_are_small_tied_and_around_the_median(store, tmp_path):
    params = make_member("state", small_config(store, "relu", 10), StoreSource(store), tmp_path).params
    torch.testing.assert_close(params.W_dec.norm(dim=1), torch.full((48,), 0.1))
    assert torch.equal(params.W_enc, params.W_dec.T)
    at_median = params.b_dec @ params.W_enc + params.b_enc
    torch.testing.assert_close(at_median, torch.zeros(48), rtol=0, atol=1e-5)


def test_a_short_training_reaches_the_target_and_exports_itself(store, tmp_path):
    member = trained_member(store, "relu", 200, tmp_path)
    assert_short_training_reaches(store, member, k=4, fvu=0.4, tolerance=0.15)
    assert_export_is_the_training_forward(store, member)


def test_resumes_exactly(store, tmp_path):
    assert_resumes_exactly(store, "relu", tmp_path)


def test_options_that_cannot_work_are_refused(store):
    with pytest.raises(UsageError, match="relu: first_norm must be a positive number, not 0"):
        small_config(store, "relu", 10, first_norm=0.0)
    with pytest.raises(UsageError, match="relu: k must be above 0 and at most the width 48, not 49"):
        small_config(store, "relu", 10, k=49)
    with pytest.raises(UsageError, match="fixed coefficient must be finite and at least 0, not -1"):
        small_config(store, "relu", 10, l1_coefficient=-1.0)
