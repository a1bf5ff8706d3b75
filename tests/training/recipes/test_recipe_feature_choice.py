"""Feature Choice: allowances that sum to the budget, thresholds at the trained shares, no dead features."""

import math
from dataclasses import replace

import pytest
import torch
from choice_helpers import (
    BATCH,
    HELD_OUT,
    WIDTH,
    in_tiles,
    measured,
    planted_store,
    random_parameters,
    train_member,
)

from saelab.errors import UsageError
from saelab.sae.zipf import ZipfFit
from saelab.training.allowances import UNIT, budgets_of_step, filled_allowances
from saelab.training.feature_thresholds import calibrated_feature_thresholds, log_thresholds
from saelab.training.recipes.feature_choice import ALLOWANCES, LOG_THETA, FeatureChoice
from saelab.training.recipes.moments import Clock
from saelab_kernels.rules import PerBatch, PerFeature
from saelab_kernels.select import encode_select

STEPS = 160


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return planted_store(tmp_path_factory.mktemp("feature"))


@pytest.fixture(scope="module", params=["zipf", "uniform"])
def trained(request, store):
    return train_member(store, "feature-choice", STEPS, variant=request.param)


def zipf_weights(d_sae, exponent, shift=0.0):
    return ZipfFit(exponent, shift, 0.0).expected(torch.arange(1, d_sae + 1))


@pytest.mark.parametrize("exponent", [0.3, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("least", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("total", "most"), [(65_536, 2048), (3_001, 512), (1_000_000, 1_024)])
def test_allowances_sum_to_the_budget_within_their_bounds(exponent, least, total, most):
    weights = zipf_weights(1_500, exponent)
    found = filled_allowances(weights, total, least=least, most=most)
    assert int(found.sum()) == total * UNIT
    assert found.min() >= int(least * UNIT)
    assert found.max() <= most * UNIT
    inside = (found > least * UNIT + 2) & (found < most * UNIT - 2)
    level = found[inside] / UNIT / weights[inside]
    torch.testing.assert_close(
        level, level.median().expand_as(level), rtol=1e-2, atol=2 / UNIT / float(weights[inside].min())
    )


def test_hand_made_allowances():
    """The water level is 2: one feature at the lid, one at the floor, two in proportion."""
    found = filled_allowances(torch.tensor([9.0, 2.0, 1.0, 0.1]), 15, least=1.0, most=8)
    assert found.tolist() == [8 * UNIT, 4 * UNIT, 2 * UNIT, 1 * UNIT]
    assert filled_allowances(torch.ones(4), 6, least=1.0, most=8).tolist() == [3 * UNIT // 2] * 4


def test_a_budget_below_the_floors_is_shared_equally_and_one_above_the_lids_is_refused():
    assert (filled_allowances(zipf_weights(64, 1.0), 16, least=1.0, most=8) == UNIT // 4).all()
    assert (filled_allowances(zipf_weights(64, 1.0), 512, least=1.0, most=8) == 8 * UNIT).all()
    with pytest.raises(UsageError, match="a budget of 513 pairs is more than 64 features in 8 tokens"):
        filled_allowances(torch.ones(64), 513, least=1.0, most=8)


def test_budgets_of_steps_have_the_exact_sum_and_the_allowances_as_their_mean():
    allowances = filled_allowances(zipf_weights(400, 1.2), 1_000, least=0.1, most=128)
    steps = torch.stack([budgets_of_step(allowances, step) for step in range(1024)])
    assert (steps.sum(1) == 1_000).all()
    assert steps.min() >= 0
    assert ((steps - allowances / UNIT).abs() < 1).all()
    torch.testing.assert_close(steps.double().mean(0), allowances.double() / UNIT, rtol=0, atol=0.01)
    whole = torch.tensor([3, 5, 0]) * UNIT
    assert budgets_of_step(whole, 77).tolist() == [3, 5, 0]


def test_every_feature_keeps_its_budget_in_a_batch():
    params = random_parameters(16, 64)
    params.b_enc.fill_(50.0)  # all affinities are positive
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(3))
    allowances = filled_allowances(zipf_weights(64, 1.0), 768, least=1.0, most=256)
    recipe, state = FeatureChoice(k=3, variant="uniform"), {ALLOWANCES: allowances}
    rule, tensors = recipe.rule(state, Clock(5, 10, 256))
    code = encode_select(x, params.W_enc, params.b_enc, rule, **tensors._asdict()).code
    assert torch.equal(code.firing_counts(), budgets_of_step(allowances, 5))
    assert int(code.firing_counts().sum()) == 768


def test_log_thresholds_are_hand_made_means_and_nothing_where_a_value_is_missing():
    params = replace(random_parameters(4, 4), W_enc=torch.eye(4), b_enc=torch.zeros(4))
    x = torch.tensor([[8.0, 1.0, -1.0, 5.0], [4.0, -2.0, -1.0, 3.0], [2.0, -1.0, -3.0, 1.0]])
    budgets = torch.tensor([2, 2, 1, 0])
    selection = encode_select(x, params.W_enc, params.b_enc, PerFeature(), budgets=budgets, boundary=True)
    expected = torch.tensor([(math.log(4) + math.log(2)) / 2, math.nan, math.nan, math.nan])
    torch.testing.assert_close(log_thresholds(selection), expected, equal_nan=True)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_averaged_log_thresholds_are_unbiased_where_the_smallest_kept_value_is_not(m):
    """Values with exponential tails: their shares are 0.56, 0.76 and 0.84 of the target by the smallest kept value."""
    generator = torch.Generator().manual_seed(0)
    logs, smallest = [], []
    # Columns are independent, so that one selection is as many batches of one feature.
    n_batches, budgets = 100, torch.full((100,), m)
    params = replace(
        random_parameters(n_batches, n_batches), W_enc=torch.eye(n_batches), b_enc=torch.zeros(n_batches)
    )
    for _ in range(20):
        x = -torch.log(torch.rand(256, n_batches, generator=generator).clamp_min(1e-9)) + 3.0
        selection = encode_select(x, params.W_enc, params.b_enc, PerFeature(), budgets=budgets, boundary=True)
        logs.append(log_thresholds(selection))
        smallest.append(
            torch.full((n_batches,), torch.inf).scatter_reduce(
                0, selection.code.columns.long(), selection.code.values, "amin"
            )
        )
    share = math.exp(3.0 - float(torch.cat(logs).mean().exp())) / (m / 256)
    biased = math.exp(3.0 - float(torch.cat(smallest).mean())) / (m / 256)
    assert share == pytest.approx(1.0, abs=0.08)
    assert biased == pytest.approx({1: 0.56, 2: 0.76, 3: 0.84}[m], abs=0.03)


@pytest.mark.parametrize("chunks", [1, 4])
def test_calibrated_thresholds_give_exactly_the_shares_over_the_rows(chunks):
    n = 8192 * chunks
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    x[: n // 8] *= 5.0  # the first rows hold most of the largest values
    params = random_parameters(8, 24)
    shares = torch.linspace(0.0, 0.4, 24)
    shares[1] = 7.4 / n
    theta = calibrated_feature_thresholds(params, in_tiles(x), shares)
    fired = (x @ params.W_enc + params.b_enc > theta).sum(0)
    assert theta[:2].isnan().all(), "fewer than 8 expected firings tell nothing"
    assert torch.equal(fired[2:], (shares.double() * n).round().long()[2:])


def test_a_share_that_positive_values_cannot_fill_gives_the_threshold_zero():
    params = random_parameters(8, 3)
    params.b_enc.copy_(torch.tensor([-100.0, 0.0, 0.0]))
    x = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0))
    theta = calibrated_feature_thresholds(params, in_tiles(x), torch.tensor([0.1, 0.9, 0.1]))
    assert theta[:2].tolist() == [0.0, 0.0]
    assert theta[2] > 0


def test_the_first_stage_is_mutual_choice_and_the_second_has_the_curve(store):
    recipe = FeatureChoice(k=3)
    clocks = [Clock(step, 100, BATCH) for step in range(100)]
    assert [recipe.features_choose(clock) for clock in clocks] == [False] * 60 + [True] * 40
    assert all(FeatureChoice(variant="uniform").features_choose(clock) for clock in clocks)
    member = train_member(store, "feature-choice", 20).member
    assert recipe.rule(member.recipe_state, Clock(0, 20, BATCH))[0] == PerBatch(3.0)
    allowances = member.recipe_state[ALLOWANCES]
    assert int(allowances.sum()) == 3 * BATCH * UNIT
    assert len(allowances.unique()) > WIDTH // 2, "they follow a curve"


def test_no_feature_is_dead_over_a_few_batches(trained):
    fired = torch.stack(
        [trained.select(batch).code.firing_counts() for batch in HELD_OUT[:1024].split(BATCH)]
    )
    assert (fired.sum(0) > 0).all()
    assert not trained.member.tracker.dead.any()


def test_without_help_a_batch_wide_choice_leaves_features_dead_on_the_same_data(store):
    by_batch = train_member(store, "batch-topk", STEPS, coefficient=0.0)
    fired = torch.stack(
        [by_batch.select(batch).code.firing_counts() for batch in HELD_OUT[:1024].split(BATCH)]
    )
    assert (fired.sum(0) == 0).any(), "without help the same data leave features dead"


@pytest.mark.parametrize(("threshold", "l0_error"), [("calibrated", 0.05), ("average", 0.1)])
def test_the_finished_sae_has_the_mean_l0_and_the_fvu_of_the_batch_rule(trained, threshold, l0_error):
    fvu, l0 = measured(trained.sae(threshold=threshold), HELD_OUT)
    by_rule, _ = trained.by_the_batch_rule(HELD_OUT)
    assert l0 == pytest.approx(3, rel=l0_error)
    assert fvu == pytest.approx(by_rule, rel=0.05)


def test_features_fire_on_their_trained_share_of_held_out_tokens(trained):
    shares = trained.member.recipe_state[ALLOWANCES] / UNIT / BATCH
    found = trained.sae(threshold="calibrated").encode(HELD_OUT).firing_counts() / len(HELD_OUT)
    common = shares > 0.02
    assert common.any()
    torch.testing.assert_close(found[common], shares[common].float(), rtol=0.25, atol=0)


def test_the_running_average_stands_in_where_the_sample_is_too_small(trained):
    member = trained.member
    params, state = member.params, dict(member.recipe_state)
    few = torch.zeros(1024, 16)  # 1,024 rows expect less than 8 firings of rare features
    shares = state[ALLOWANCES] / UNIT / BATCH
    theta = member.config.recipe.finalise(params, state, in_tiles(few)).theta
    rare = shares * 1024 < 7.9
    torch.testing.assert_close(theta[rare], state[LOG_THETA].exp().nan_to_num(0.0)[rare])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_share": 0.0}, "first_share must be between 0 and 1, not 0"),
        ({"first_share": 1.0}, "first_share must be between 0 and 1"),
        ({"least": -1.0}, "least must be at least 0, not -1"),
        ({"k": 65.0}, "feature-choice: k must be above 0 and at most the width 64"),
        ({"kappa": 2.0}, "kappa must be from 0 to 1"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        FeatureChoice(**options).check(64)
