"""What the tests of the recipes with a penalty share: small float64 states, gradients, short runs."""

import json

import pytest
import torch
from training_helpers import StopAfter, data_files, train_run

from saelab.activations.source import StoreSource
from saelab.api import train_config
from saelab.errors import Interrupted
from saelab.sae.autoencoder import SAEParameters
from saelab.training.finish import finished_sae
from saelab.training.member import make_member
from saelab.training.optimiser import HeldGradients, SparseAdamOnTerms
from saelab.training.recipes.moments import Clock, Inputs, Setup
from saelab.training.views import HookRows
from saelab_kernels.adam_state import AdamOptions, Weights

D_IN, D_SAE, TOKENS, VARIANCE = 6, 10, 32, 3.0
CLOCK = Clock(50, 100, TOKENS)


def draws(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_case(recipe):
    """Untied float64 weights, the recipe's state for them with a coefficient of 0.7, and a batch."""
    params = SAEParameters(
        W_enc=draws(0, D_SAE, D_IN).T,
        b_enc=0.3 * draws(1, D_SAE),
        W_dec=draws(2, D_SAE, D_IN),
        b_dec=draws(3, D_IN),
    )
    x = draws(4, TOKENS, D_IN)
    setup = Setup(CLOCK, D_IN, D_IN, D_SAE, VARIANCE, x.float(), x.float(), (D_IN,), 0)
    single = SAEParameters(**{name: tensor.float().clone() for name, tensor in params.named().items()})
    state = {name: tensor.double() for name, tensor in recipe.init(single, setup).items()}
    state["coefficient"] = torch.tensor(0.7, dtype=torch.float64)
    return params, state, x


def found_gradients(recipe, params, state, x, clock=CLOCK):
    """The forward pass of a batch, and the gradients of all weights as the optimiser sees them."""
    traits = recipe.traits
    inputs = Inputs(x - params.b_dec if traits.input_bias else x, x)
    found = recipe.forward(inputs, params, state, clock, VARIANCE)
    copies = Weights(
        **{name: t.clone(memory_format=torch.preserve_format) for name, t in params.named().items()}
    )
    options = AdamOptions(beta1=0.0, unit_rows=False, input_bias=traits.input_bias)
    held = traits.held_gradients
    optimiser = HeldGradients(copies, options, traits.trained) if held else SparseAdamOnTerms(copies, options)
    optimiser.step(found, 0.0)
    moments = {name: optimiser.state_tensors()[f"{name}.exp_avg"] for name in params.named()}
    if held:
        moments["W_enc"] = moments["W_enc"].T
    return found, moments


def leaves_of(params, **own):
    """Copies of the weights and of a recipe's own parameters that autograd follows."""
    return {name: tensor.clone().requires_grad_() for name, tensor in (params.named() | own).items()}


def assert_same(found, moments, loss, leaves):
    """The found loss and gradients are those of a dense loss."""
    loss.backward()
    torch.testing.assert_close(found.loss.total, loss.detach(), rtol=1e-11, atol=0)
    for name, leaf in leaves.items():
        gradient = moments[name] if name in moments else found.own[name]
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-9, atol=1e-12, msg=name)


def small_config(store, name, steps, **options):
    recipe_options = {"k": 4} | options
    run = {"width": 48, "batch": 64, "checkpoint_every": 5, "log_every": 3, "tokens": steps * 64}
    return train_config(store, name, recipe_options=recipe_options, **run)


def trained_member(store, name, steps, folder, **options):
    """An SAE after some steps on planted data."""
    member = make_member("state", small_config(store, name, steps, **options), StoreSource(store), folder)
    x = store.rows(None, "train", 0, store.n_rows(None, "train")).x
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        member.train_on({member.config.hook: HookRows(x[torch.randint(len(x), (64,), generator=generator)])})
    return member


def assert_short_training_reaches(store, member, k, fvu, tolerance):
    """On held-out rows the finished SAE has about k features a token, explains the data, and has unit rows."""
    sae, _ = finished_sae(member, StoreSource(store))
    x = store.rows(None, "heldout", 0, store.n_rows(None, "heldout")).x
    x_hat, code = sae.reconstruct(x)
    assert float(code.l0().double().mean()) == pytest.approx(k, rel=tolerance)
    found_fvu = float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
    assert found_fvu < fvu
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(len(sae.W_dec)), rtol=0, atol=1e-5)


def assert_export_is_the_training_forward(store, member):
    """The finished SAE keeps the pairs, and reconstructs what the last forward pass of training would."""
    sae, _ = finished_sae(member, StoreSource(store))
    x = store.rows(None, "train", 0, 256).x
    factor = member.views.inputs[0].normalisation.factor
    traits, params = member.config.recipe.traits, member.params
    inputs = Inputs(x * factor - params.b_dec if traits.input_bias else x * factor, x * factor)
    found = member.config.recipe.forward(inputs, params, member.recipe_state, member.clock, 1.0)
    x_hat, code = sae.reconstruct(x)
    torch.testing.assert_close(x_hat, (found.error + inputs.target) / factor, rtol=1e-4, atol=1e-4)
    # A sum that is folded in another order may cross its threshold.
    differing = ((found.code.dense() > 0) != (code.dense() > 0)).sum()
    assert int(differing) <= 1e-3 * int((code.dense() > 0).sum())


def assert_resumes_exactly(store, name, tmp_path, **options):
    """A run that was stopped and resumed has the bits of one that was not."""
    config = small_config(store, name, 24, **options)
    train_run(config, store, tmp_path / "straight")
    with pytest.raises(Interrupted):
        train_run(config, store, tmp_path / "run", stop=StopAfter(12))
    train_run(config, store, tmp_path / "run")
    assert data_files(tmp_path / "run") == data_files(tmp_path / "straight")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["sparsity_coefficient"] > 0 for line in lines)
