"""What is measured token by token, against SAEs whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from run_helpers import HOOK

from saelab.activations.cache import cache_activations
from saelab.evaluation.comparison.difficulty import (
    N_BINS,
    difficulty_bins,
    fvu_by_difficulty,
    token_losses,
)
from saelab.evaluation.comparison.profile import (
    LONGEST_CURVE,
    active_histogram,
    density_curve,
    measure,
    squared_deviations,
)
from saelab.evaluation.evaluate import evaluate
from saelab.evaluation.sources import saved_config
from saelab.evaluation.spec import EvaluationConfig
from saelab.evaluation.tokens import choose_tokens

TOKENS = 300


@pytest.fixture
def chosen(world):
    return choose_tokens(world.masked, world.masked.hook(HOOK), TOKENS)


def heldout(store, n):
    return store.rows(HOOK, "heldout", 0, n).x


def test_an_sae_that_shrinks_towards_the_mean_has_one_fvu_in_every_bin(world, chosen, known_sae):
    store, hook = world.masked, world.masked.hook(HOOK)
    mean = heldout(store, chosen.n_tokens).mean(0)
    sae = known_sae(lambda x: mean + 0.75 * (x - mean), store)
    found = measure(sae, store, chosen, tile=64)
    deviations = squared_deviations(store, (HOOK,), chosen, tile=64)
    losses = token_losses(store, hook, chosen, world.lm, batch_rows=4)
    shares = fvu_by_difficulty(difficulty_bins(losses), found.squared_error, deviations)
    assert shares == pytest.approx([0.0625] * N_BINS, rel=1e-4)
    record = evaluate(sae, store, HOOK, world.lm, config=EvaluationConfig(tokens=TOKENS), progress=False)
    whole = (found.squared_error.sum() / deviations.sum()).item()
    assert whole == pytest.approx(record.reconstruction.fvu, rel=1e-6)


def test_active_features_and_densities_are_counted(world, chosen, known_sae):
    store = world.masked
    sae = known_sae(lambda x: x * (x > 0.5), store)
    x = heldout(store, chosen.n_tokens)
    found = measure(sae, store, chosen, tile=50)
    active = (x > 0.5).sum(1)
    assert torch.equal(found.active, active)
    assert torch.equal(found.densities[: x.shape[1]], (x > 0.5).double().mean(0))
    assert not found.densities[x.shape[1] :].any()
    histogram = active_histogram(found.active)
    assert sum(histogram) == chosen.n_tokens
    assert sum(n * count for n, count in enumerate(histogram)) == int(active.sum())


def test_the_error_is_about_the_target_where_an_sae_reads_something_else(world, chosen, known_sae, tmp_path):
    other = "model.layers.1.output"
    config = replace(saved_config(world.masked.path), at=(HOOK, other))
    store = cache_activations(config, tmp_path / "store", progress=False, lm=world.lm)
    sae = known_sae(torch.zeros_like, store)
    sae.config = replace(sae.config, output_hooks=(other,))
    target = store.rows(other, "heldout", 0, chosen.n_tokens).x.double()
    found = measure(sae, store, chosen, tile=64)
    assert torch.allclose(found.squared_error, target.square().sum(1))
    deviations = squared_deviations(store, (other,), chosen, tile=64)
    assert torch.allclose(deviations, (target - target.mean(0)).square().sum(1))
    both = squared_deviations(store, (HOOK, other), chosen, tile=64)
    assert torch.allclose(both - deviations, squared_deviations(store, (HOOK,), chosen, tile=64))


def test_the_measured_losses_are_those_of_the_evaluation(world, chosen, known_sae):
    store, hook = world.masked, world.masked.hook(HOOK)
    config = EvaluationConfig(tokens=TOKENS)
    record = evaluate(known_sae(lambda x: x, store), store, HOOK, world.lm, config=config, progress=False)
    losses = token_losses(store, hook, chosen, world.lm, batch_rows=3)
    counted = losses[~losses.isnan()]
    assert len(losses) == chosen.n_tokens
    assert len(counted) == record.loss.n_predictions
    assert counted.mean().item() == pytest.approx(record.loss.ce_clean, rel=1e-5)


def test_losses_of_the_store_are_taken_and_equal_the_models(world, chosen, tmp_path):
    config = replace(saved_config(world.masked.path), loss=True)
    store = cache_activations(config, tmp_path / "store", progress=False, lm=world.lm)
    assert choose_tokens(store, store.hook(HOOK), TOKENS).digest == chosen.digest
    stored = token_losses(store, store.hook(HOOK), chosen, None, batch_rows=4)
    measured = token_losses(world.masked, world.masked.hook(HOOK), chosen, world.lm, batch_rows=4)
    assert torch.equal(stored.isnan(), measured.isnan())
    assert torch.allclose(stored, measured, atol=1e-4, equal_nan=True)


def test_without_losses_and_model_there_is_no_difficulty(world, chosen):
    assert token_losses(world.masked, world.masked.hook(HOOK), chosen, None, batch_rows=4) is None


def test_bins_are_tenths_by_loss_without_what_does_not_count():
    losses = torch.from_numpy(np.random.default_rng(0).permutation(np.arange(100.0)))
    losses = torch.cat([torch.tensor([float("nan")], dtype=torch.float64), losses])
    bins = difficulty_bins(losses)
    assert [len(index) for index in bins.members] == [10] * N_BINS
    assert bins.mean_loss == tuple(4.5 + 10 * number for number in range(N_BINS))
    assert 0 not in torch.cat(bins.members)
    assert difficulty_bins(losses[:10]) is None


def test_a_bin_whose_tokens_do_not_deviate_has_no_fvu():
    bins = difficulty_bins(torch.arange(20.0, dtype=torch.float64))
    deviations = torch.ones(20, dtype=torch.float64)
    deviations[:2] = 0
    errors = torch.arange(20.0, dtype=torch.float64)
    assert fvu_by_difficulty(bins, errors, deviations)[:2] == (None, 2.5)


def test_a_density_curve_is_thinned_in_the_ranks_and_leaves_the_dead_out():
    ranks = torch.arange(1, 5001, dtype=torch.float64)
    densities = torch.cat([torch.zeros(500, dtype=torch.float64), 0.3 / ranks])
    curve = density_curve(densities[torch.randperm(5500, generator=torch.Generator().manual_seed(0))])
    assert len(curve.ranks) <= LONGEST_CURVE
    assert (curve.ranks[0], curve.ranks[-1]) == (1, 5000)
    assert curve.densities == pytest.approx([0.3 / rank for rank in curve.ranks])
    assert curve.zipf.exponent == pytest.approx(1.0)
    assert density_curve(torch.zeros(30)).ranks == ()
