"""BatchTopK: the budget of a batch, the one threshold of inference, and the batch size as a part of the rule."""

import json
import math

import pytest
import torch
from choice_helpers import HELD_OUT, in_tiles, measured, planted_store, random_parameters, train_member
from training_helpers import StopAfter, data_files, train_run

from saelab.api import train_config
from saelab.errors import Interrupted, UsageError
from saelab.training.batch_threshold import averaged, calibrated_threshold, in_chunks
from saelab.training.recipes.batch_topk import BatchTopK
from saelab.training.recipes.moments import Clock


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_member(
        planted_store(tmp_path_factory.mktemp("batch")), "batch-topk", 150, threshold="average"
    )


def config_of(store, **options):
    small = {"width": 48, "lr": 1e-2, "batch": 64, "tokens": 24 * 64, "checkpoint_every": 5, "log_every": 3}
    return train_config(
        store, "batch-topk", recipe_options={"k": 4.5, "threshold": "average"}, **(small | options)
    )


def pre_activations(x, params):
    return x @ params.W_enc + params.b_enc


@pytest.mark.parametrize("k", [0.01, 2.5, 7, 15])
@pytest.mark.parametrize("burst", [1.0, 20.0])
def test_the_threshold_is_the_kth_largest_value_of_all_rows(k, burst):
    x = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    x[18_000:] *= burst  # the last chunk then holds far more than its share of the largest
    params = random_parameters(8, 16)
    values = pre_activations(x, params)
    theta = calibrated_threshold(params, in_tiles(x), k)
    positive = int((values > 0).sum())
    assert int((values > theta).sum()) == pytest.approx(min(round(k * len(x)), positive), abs=1)
    assert theta >= 0


def test_the_threshold_is_zero_where_all_positive_values_are_few_enough():
    params = random_parameters(8, 16)
    assert calibrated_threshold(params, in_tiles(torch.randn(100, 8)), 16) == 0
    params.b_enc.fill_(-100.0)
    assert calibrated_threshold(params, in_tiles(torch.randn(100, 8)), 2) == 0


def test_chunks_join_tiles_and_lose_none():
    x = torch.arange(10.0)[:, None]
    chunks = list(in_chunks(iter(x.split(3)), 5))
    assert [len(chunk) for chunk in chunks] == [6, 4]
    assert torch.equal(torch.cat(chunks), x)
    assert list(in_chunks(iter([]))) == []


def test_a_running_average_copies_the_first_value_and_forgets_over_two_percent_of_the_run():
    clock, average = Clock(0, 1000, 64), torch.full((3,), torch.nan)
    average = averaged(average, torch.tensor([4.0, math.nan, 1.0]), clock)
    average = averaged(average, torch.tensor([24.0, math.nan, math.nan]), clock)
    torch.testing.assert_close(average, torch.tensor([4 + 20 / 20, math.nan, 1.0]), equal_nan=True)
    short = averaged(torch.tensor(4.0), torch.tensor(24.0), Clock(0, 10, 64))
    assert short == 24, "of a run of ten steps only the last one counts"


def test_a_batch_keeps_exactly_its_budget_and_does_not_depend_on_its_order(trained):
    x = HELD_OUT[:256]
    code = trained.select(x).code.dense()
    assert int((code > 0).sum()) == 3 * 256
    assert (code > 0).sum(1).double().std() > 0, "tokens differ in how many features they have"
    order = torch.randperm(256, generator=torch.Generator().manual_seed(1))
    assert torch.equal(trained.select(x[order]).code.dense(), code[order])


def test_the_batch_matters_for_the_batch_rule_and_not_for_the_threshold(trained):
    x = HELD_OUT[:256]
    halves = torch.cat([trained.select(half).code.dense() for half in x.split(128)])
    assert not torch.equal(halves, trained.select(x).code.dense())
    sae = trained.sae()
    assert torch.equal(torch.cat([sae.encode(half).dense() for half in x.split(128)]), sae.encode(x).dense())


@pytest.mark.parametrize("threshold", ["calibrated", "average"])
def test_the_finished_sae_has_the_mean_l0_and_the_fvu_of_the_batch_rule(trained, threshold):
    fvu, l0 = measured(trained.sae(threshold=threshold), HELD_OUT)
    by_rule, exact = trained.by_the_batch_rule(HELD_OUT)
    assert exact == 3
    assert l0 == pytest.approx(3, rel=0.05)
    assert fvu == pytest.approx(by_rule, rel=0.03)
    assert fvu < 0.4


def test_an_interrupted_run_goes_on_with_its_average(store, tmp_path):
    train_run(config_of(store), store, tmp_path / "straight")
    with pytest.raises(Interrupted):
        train_run(config_of(store), store, tmp_path / "stopped", stop=StopAfter(13))
    train_run(config_of(store), store, tmp_path / "stopped")
    assert data_files(tmp_path / "stopped") == data_files(tmp_path / "straight")


@pytest.mark.parametrize("name", ["batch-topk", "mutual-choice", "feature-choice"])
def test_the_selection_batch_is_recorded_and_refused_when_it_changes(store, tmp_path, name):
    options = {"width": 48, "tokens": 24 * 64, "lr": 1e-2, "recipe_options": {"k": 4}}
    with pytest.raises(Interrupted):
        train_run(train_config(store, name, batch=64, **options), store, tmp_path / "run", stop=StopAfter(6))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["batch"] == 64
    with pytest.raises(UsageError, match="batch: 64 there, 32 now"):
        train_run(train_config(store, name, batch=32, **options), store, tmp_path / "run")


@pytest.mark.parametrize("k", [0, -1, 49, float("inf")])
def test_a_k_that_cannot_work_is_refused_with_the_bound(k):
    with pytest.raises(UsageError, match="batch-topk: k must be above 0 and at most the width 48"):
        BatchTopK(k=k).check(48)
    BatchTopK(k=0.5).check(48)
