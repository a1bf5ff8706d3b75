"""Mutual Choice: BatchTopK's activation, and help for features that fire too seldom beside dead ones."""

import math

import pytest
import torch
from choice_helpers import planted_store, random_parameters, setup_of, train_member

from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.sae.zipf import ZipfFit
from saelab.training.dead import DeadFeatureTracker, aux_features
from saelab.training.objectives import aux_k
from saelab.training.recipes.batch_topk import BatchTopK
from saelab.training.recipes.moments import Clock, Inputs
from saelab.training.recipes.mutual_choice import MutualChoice
from saelab.training.step import aux_term
from saelab.training.under_use import FIRED, SHORTFALL, WATCHED, expected_densities, judge, new_counts
from saelab_kernels.gradients import code_gradients
from saelab_kernels.shapes import Tensor

D_IN, D_SAE, TOKENS = 12, 40, 64


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return planted_store(tmp_path_factory.mktemp("mutual"))


@pytest.fixture
def params() -> SAEParameters:
    return random_parameters(D_IN, D_SAE, dtype=torch.float64)


@pytest.fixture
def inputs() -> Inputs:
    x = torch.randn(TOKENS, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Inputs(x, x)


def tracker_of(dead: Tensor) -> DeadFeatureTracker:
    return DeadFeatureTracker(torch.where(dead, 100, 0), after_tokens=50)


def state_with(shortfall: Tensor):
    return new_counts(D_SAE) | {SHORTFALL: shortfall}


def features_between(start, stop):
    return (torch.arange(D_SAE) >= start) & (torch.arange(D_SAE) < stop)


def test_without_aux_zipf_it_is_batch_topk_to_the_bit(store):
    plain = train_member(store, "batch-topk", 40, batch=32, min_tokens=32).member
    mutual = train_member(store, "mutual-choice", 40, batch=32, min_tokens=32, kappa=0.0).member
    without = train_member(store, "batch-topk", 40, batch=32, min_tokens=32, coefficient=0.0).member
    assert not torch.equal(plain.params.W_dec, without.params.W_dec), "AuxK must have had something to do"
    for name, tensor in plain.params.named().items():
        assert torch.equal(mutual.params.named()[name], tensor), name


def test_the_activation_is_that_of_batch_topk_to_the_bit(params, inputs):
    clock = Clock(3, 10, TOKENS)
    state = MutualChoice(k=2.5).init(params, setup_of(clock, D_SAE))
    codes = [
        recipe.select(inputs, params, state, clock).code for recipe in (MutualChoice(k=2.5), BatchTopK(k=2.5))
    ]
    assert torch.equal(codes[0].dense(), codes[1].dense())
    assert int((codes[0].dense() > 0).sum()) == 160


@pytest.mark.parametrize("aux_k_features", [3, 6, 100])
def test_with_no_under_used_features_the_help_is_auxk(params, inputs, aux_k_features):
    dead = features_between(0, 8)
    found = MutualChoice().aux(
        inputs, params, tracker_of(dead), state_with(torch.zeros(D_SAE)), aux_k_features
    )
    plain = aux_features(inputs.encoder, params, dead, aux_k_features)
    assert found is not None
    assert plain is not None
    assert found.weights is None
    assert torch.equal(found.features, plain.features)
    assert torch.equal(found.code.dense(), plain.code.dense())
    nothing = tracker_of(torch.zeros(D_SAE, dtype=torch.bool))
    assert MutualChoice().aux(inputs, params, nothing, state_with(torch.zeros(D_SAE)), 6) is None


@pytest.mark.parametrize(
    ("n_dead", "n_under_used", "slots", "expected"),
    [(20, 20, 8, (4, 4)), (1, 20, 8, (1, 7)), (20, 2, 8, (6, 2)), (0, 20, 8, (0, 8)), (20, 20, 1, (0, 1))],
)
def test_slots_are_reserved_for_dead_features_and_unused_ones_go_to_the_others(
    params, inputs, n_dead, n_under_used, slots, expected
):
    params.b_enc.fill_(100.0)  # every candidate is positive, so that every slot is filled
    dead = features_between(0, n_dead)
    shortfall = torch.where(features_between(n_dead, n_dead + n_under_used), 0.75, 0.0)
    found = MutualChoice().aux(inputs, params, tracker_of(dead), state_with(shortfall), slots)
    assert found is not None
    active = found.code.dense() > 0
    is_dead = dead[found.features]
    assert (active[:, is_dead].sum(1) == expected[0]).all()
    assert (active[:, ~is_dead].sum(1) == expected[1]).all()
    assert found.weights is not None
    assert torch.equal(found.weights, torch.where(is_dead, 1.0, 0.75).double())


def test_the_help_has_the_gradients_of_dense_autograd(params, inputs):
    dead, shortfall = features_between(0, 10), torch.zeros(D_SAE)
    shortfall[10:25] = torch.linspace(0.5, 1.0, 15)
    residual = torch.randn(TOKENS, D_IN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    spare = MutualChoice().aux(inputs, params, tracker_of(dead), state_with(shortfall), 6)
    assert spare is not None
    loss, term = aux_term(spare, inputs, residual, 0.5)
    term = term.among_all(D_SAE)
    found = code_gradients(term.code, term.x, params.W_dec, term.g_out, g_values=term.g_values)

    W_enc, b_enc, W_dec = (t.clone().requires_grad_() for t in (params.W_enc, params.b_enc, params.W_dec))
    u = inputs.encoder @ W_enc + b_enc
    chosen = torch.zeros_like(u)
    for mask in (dead, shortfall > 0):
        ranked = u.where(mask, torch.tensor(-torch.inf, dtype=u.dtype))
        chosen = chosen.scatter(1, ranked.topk(3, dim=1).indices, 1.0)
    values = torch.relu(u) * chosen * torch.where(dead, 1.0, shortfall)
    e_hat = values @ W_dec
    expected = aux_k(e_hat - residual, (e_hat - residual).detach().square().sum(1), residual)
    (0.5 * expected).backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    for name, gradient in (("W_enc", W_enc.grad), ("b_enc", b_enc.grad), ("W_dec", W_dec.grad)):
        torch.testing.assert_close(getattr(found, name), gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_judgement_needs_thirty_expected_firings_a_share_below_kappa_and_the_poisson_test():
    expected = torch.full((6,), 0.01, dtype=torch.float64)
    watched = torch.tensor([2_999, 3_000, 3_000, 100_000, 100_000, 100_000])
    fired = torch.tensor([0, 14, 15, 499, 500, 0])
    state = {FIRED: fired, WATCHED: watched, SHORTFALL: torch.full((6,), 0.125)}
    found = judge(state, expected, 0.5)
    torch.testing.assert_close(found[SHORTFALL], torch.tensor([0.125, 1 - 14 / 30, 0.0, 0.501, 0.0, 1.0]))
    assert found[FIRED].tolist() == [0] * 6
    assert found[WATCHED].tolist() == [2_999, 0, 0, 0, 0, 0], "what is not judged is counted on"


def test_a_large_kappa_is_held_by_the_poisson_test():
    expected = torch.tensor([0.01, 0.01], dtype=torch.float64)
    # P(Poisson(30) <= 18) = 0.0135 and P(Poisson(30) <= 17) = 0.0073
    state = {FIRED: torch.tensor([18, 17]), WATCHED: torch.full((2,), 3_000), SHORTFALL: torch.zeros(2)}
    assert (judge(state, expected, 1.0)[SHORTFALL] > 0).tolist() == [False, True]


def test_kappa_zero_calls_nothing_under_used():
    state = {
        FIRED: torch.zeros(4, dtype=torch.int64),
        WATCHED: torch.full((4,), 10**9),
        SHORTFALL: torch.zeros(4),
    }
    assert not judge(state, torch.full((4,), 0.5, dtype=torch.float64), 0.0)[SHORTFALL].any()


def test_healthy_features_are_hardly_ever_called_under_used():
    curve = ZipfFit(1.0, 4.0, math.log(0.3))
    densities = curve.expected(torch.arange(1, 2001))
    state = new_counts(2000)
    state[WATCHED] += 400_000
    state[FIRED] += torch.poisson(densities * 400_000, generator=torch.Generator().manual_seed(0)).long()
    expected = expected_densities(state)
    assert expected is not None
    found = judge(state, expected, 0.5)[SHORTFALL]
    assert int((found > 0).sum()) <= 2
    state[FIRED][1900:] //= 10
    found = judge(state, expected, 0.5)[SHORTFALL]
    assert (found[1900:] > 0.8).all()


def test_a_short_run_judges_its_features(store):
    shortfall = train_member(store, "mutual-choice", 60).member.recipe_state[SHORTFALL]
    assert ((shortfall >= 0) & (shortfall <= 1)).all()
    assert shortfall.any()


@pytest.mark.parametrize("option", ["kappa", "refit_share", "dead_slots"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_shares_outside_their_bounds_are_refused(option, value):
    with pytest.raises(UsageError, match=f"mutual-choice: {option} must be from 0 to 1"):
        MutualChoice(**{option: value}).check(64)
