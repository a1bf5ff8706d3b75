"""A step's gradients against dense autograd in float64, dead features and the pre-bias included."""

import pytest
import torch

from saelab.sae.autoencoder import SAEParameters
from saelab.sae.config import Normalisation
from saelab.training.dead import DeadFeatureTracker
from saelab.training.objectives import aux_k, normalised_mse
from saelab.training.recipes.moments import Clock
from saelab.training.recipes.topk import TopK
from saelab.training.step import Step
from saelab.training.views import HookRows, View, Views
from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights

D_IN, D_SAE, K, TOKENS, AUX_K, COEFFICIENT = 12, 40, 5, 64, 6, 1 / 32


@pytest.fixture
def params():
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(D_SAE, D_IN, generator=generator, dtype=torch.float64)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    return SAEParameters(
        W_enc=(W_dec + 0.1 * torch.randn(D_SAE, D_IN, generator=generator, dtype=torch.float64)).T,
        b_enc=0.1 * torch.randn(D_SAE, generator=generator, dtype=torch.float64),
        W_dec=W_dec,
        b_dec=torch.randn(D_IN, generator=generator, dtype=torch.float64),
    )


@pytest.fixture
def x():
    return torch.randn(TOKENS, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run_step(params, x, dead, factor=1.7, variance=3.0):
    view = View("hook", D_IN, Normalisation(kind="scale", factor=factor))
    step = Step(
        params=params,
        recipe=TopK(k=K),
        views=Views((view,), (view,)),
        variance=variance,
        aux_k=AUX_K,
        aux_coefficient=COEFFICIENT,
    )
    tracker = DeadFeatureTracker(torch.where(dead, 100, 0), after_tokens=50)
    result = step.run({"hook": HookRows(x)}, {}, tracker, Clock(0, 100, TOKENS))
    return result, gradients_of(params, result)


def gradients_of(params, result):
    """What the optimiser makes of a step's terms: the first moment after one step with beta1 = 0."""
    copies = {name: t.clone(memory_format=torch.preserve_format) for name, t in params.named().items()}
    adam = SparseAdam(Weights(**copies), AdamOptions(beta1=0.0, unit_rows=False))
    adam.step(result.found.terms, 0.0)
    return {name: adam.state_tensors()[f"{name}.exp_avg"] for name in copies}


def dense_loss(params, x, dead, factor=1.7, variance=3.0):
    """The same objective written with dense matrices and autograd over everything."""
    weights = {name: tensor.clone().requires_grad_() for name, tensor in params.named().items()}
    target = x * factor
    u = (target - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    kept = torch.zeros_like(u).scatter(1, u.topk(K, dim=1).indices, 1.0)
    x_hat = (torch.relu(u) * kept) @ weights["W_dec"] + weights["b_dec"]
    loss = (target - x_hat).square().sum(1).mean() / variance
    if dead.any():
        e = (target - x_hat).detach()
        spare = torch.where(dead, u, torch.tensor(-torch.inf, dtype=u.dtype))
        chosen = torch.zeros_like(u).scatter(1, spare.topk(min(AUX_K, int(dead.sum())), dim=1).indices, 1.0)
        e_hat = (torch.relu(u) * chosen) @ weights["W_dec"]
        loss = loss + COEFFICIENT * (e - e_hat).square().sum() / (e - e.mean(0)).square().sum()
    loss.backward()
    return loss.detach(), {name: tensor.grad for name, tensor in weights.items()}


@pytest.mark.parametrize("n_dead", [0, 3, 20, D_SAE])
def test_gradients_equal_dense_autograd(params, x, n_dead):
    dead = torch.arange(D_SAE) < n_dead
    result, gradients = run_step(params, x, dead)
    loss, expected = dense_loss(params, x, dead)
    torch.testing.assert_close(result.metrics["loss"], loss, rtol=1e-12, atol=0)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-10, atol=1e-13, msg=name)


def test_aux_k_moves_only_dead_rows_and_reaches_their_encoder(params, x):
    dead = torch.arange(D_SAE) < 4
    _, with_aux = run_step(params, x, dead)
    _, without = run_step(params, x, torch.zeros(D_SAE, dtype=torch.bool))
    for name, rows in (
        ("W_dec", with_aux["W_dec"] - without["W_dec"]),
        ("W_enc", (with_aux["W_enc"] - without["W_enc"]).T),
    ):
        moved = rows.abs().sum(1) > 0
        assert moved[:4].all(), name
        assert not moved[4:].any(), name


def test_metrics_of_a_step_have_closed_forms(params, x):
    result, _ = run_step(params, x, torch.zeros(D_SAE, dtype=torch.bool))
    target = 1.7 * x
    x_hat = result.found.code.dense() @ params.W_dec + params.b_dec
    expected = (target - x_hat).square().sum(1).mean() / 3.0
    torch.testing.assert_close(result.metrics["fvu"], expected.detach())
    assert result.metrics["l0"] == (result.found.code.dense() > 0).sum(1).double().mean()
    assert result.metrics["aux"] == 0


def test_aux_k_has_its_closed_form_and_no_nan_for_a_constant_residual():
    e = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert aux_k(-e, e.square().sum(1), e) == (1 + 9) / (1 + 1)
    assert aux_k(torch.zeros(2, 2), torch.zeros(2), e) == 0
    error = torch.ones(2, 2, requires_grad=True)
    loss = aux_k(error, torch.full((2,), 2.0), torch.ones(2, 2))
    loss.backward()
    assert loss == 0
    assert torch.equal(error.grad, torch.zeros(2, 2))


def test_the_loss_has_the_gradient_of_a_mean_of_squares():
    error = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def loss(error):
        return normalised_mse(error, error.detach().square().sum(1), 2.0)

    loss(error).backward()
    torch.testing.assert_close(error.grad, 2 * error.detach() / (5 * 2.0))


def test_the_mean_predictor_has_a_normalised_mse_of_one():
    x = torch.tensor([[0.0, 2.0], [4.0, 2.0]])
    variance = float((x - x.mean(0)).square().sum(1).mean())
    error = x.mean(0) - x
    assert normalised_mse(error, error.square().sum(1), variance) == 1
    assert normalised_mse(0 * error, torch.zeros(2), variance) == 0
