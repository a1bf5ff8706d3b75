"""g-SAE: beta 0 is TopK, values are z, nothing flows through the gradient, and the saved form ranks as in training."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from memory_source import MemorySource

from saelab.activations.source import StoreSource
from saelab.activations.store import Store
from saelab.api import train_config
from saelab.errors import SaelabError, UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.sae.config import Normalisation
from saelab.training.batch_threshold import AVERAGED_SHARE
from saelab.training.finish import finished_sae
from saelab.training.grid import Grid, make_configs
from saelab.training.member import make_member
from saelab.training.passes import HowToTrain
from saelab.training.recipes.gradient import MEAN_C, Gradient
from saelab.training.recipes.moments import Clock, Inputs, Setup
from saelab.training.recipes.topk import TopK
from saelab.training.single import train_run
from saelab.training.views import HookRows, View, Views
from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights

D_IN, D_SAE, K, TOKENS = 10, 40, 5, 64
BATCH, WIDTH, STEPS = 64, 48, 24
CLOCK = Clock(3, 100, TOKENS)
SETUP = Setup(CLOCK, D_IN, D_IN, D_SAE, 1.0, torch.zeros(1, D_IN), torch.zeros(1, D_IN), (D_IN,), 0)


@pytest.fixture(scope="module")
def source():
    return MemorySource()


@pytest.fixture
def params():
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(D_SAE, D_IN, generator=generator, dtype=torch.float64)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    W_enc = W_dec + 0.1 * torch.randn(D_SAE, D_IN, generator=generator, dtype=torch.float64)
    b_enc = 0.1 * torch.randn(D_SAE, generator=generator, dtype=torch.float64)
    return SAEParameters(W_enc=W_enc.T, b_enc=b_enc, W_dec=W_dec, b_dec=torch.zeros(D_IN).double())


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    x, g = torch.randn(2, TOKENS, D_IN, generator=generator, dtype=torch.float64)
    return Inputs(x, x, g * torch.logspace(-3, 1, TOKENS, dtype=torch.float64)[:, None])


def member_of(source, options, name="gradient", steps=STEPS, lr=(), **more):
    """A member before its first step; nothing of it is on the disk."""
    grid = Grid(
        recipes=(name,), at=("a",), widths=(WIDTH,), lrs=lr, recipe_options={name: {"k": 4} | options}
    )
    config = make_configs(source, grid, tokens=steps * BATCH, batch=BATCH, device="cpu", **more)[0]
    return make_member("a", config, source, Path("nowhere"))


def train(member, source, first=0, last=STEPS):
    x, g = source.x["a"], source.gradients["a"]
    for step in range(first, last):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(x)
        member.train_on({"a": HookRows(x[rows], g[rows])})
    return member


def kept(code):
    return code.dense() != 0


def z_and_c(params, inputs):
    z = torch.relu(inputs.encoder @ params.W_enc + params.b_enc)
    return z, (inputs.gradients @ params.W_dec.T).abs()


def state_of(mean_c):
    return {MEAN_C: torch.tensor(mean_c)}


@pytest.mark.parametrize("norm", ["token", "global"])
def test_beta_0_trains_the_weights_of_topk_to_the_bit(source, norm):
    plain = train(member_of(source, {}, "topk"), source)
    same = train(member_of(source, {"beta": 0.0, "norm": norm}), source)
    other = train(member_of(source, {"beta": 0.3, "norm": norm}), source)
    tensors = plain.state_tensors()
    assert same.state_tensors().keys() == tensors.keys()
    assert all(torch.equal(found, tensors[name]) for name, found in same.state_tensors().items())
    assert not torch.equal(other.params.W_dec, plain.params.W_dec)
    (of_topk, theta), (sae, same_theta) = finished_sae(plain, source), finished_sae(same, source)
    assert torch.equal(theta, same_theta)
    assert replace(sae.config, recipe="topk") == of_topk.config
    with pytest.raises(SaelabError, match="no use for gradients"):
        sae.encode(source.x["a"][:4], source.gradients["a"][:4])


@pytest.mark.parametrize("norm", ["token", "global"])
def test_the_score_is_z_times_one_plus_beta_times_the_relative_effect(params, inputs, norm):
    recipe, mean_c = Gradient(k=K, beta=0.7, norm=norm), 0.25
    code = recipe.select(inputs, params, state_of(mean_c), CLOCK).code
    z, c = z_and_c(params, inputs)
    divisor = c.mean(1, keepdim=True) if norm == "token" else mean_c
    score = z * (1 + 0.7 * c / divisor)
    expected = torch.zeros_like(z).scatter(1, score.topk(K, dim=1).indices, 1.0) * z
    torch.testing.assert_close(code.dense(), expected, rtol=1e-12, atol=0)  # the values are z, not the score
    assert (kept(code) != kept(TopK(k=K).select(inputs, params, {}, CLOCK).code)).any()


def test_rescaled_gradients_select_the_same(params, inputs):
    by_token = Gradient(k=K, beta=0.7)
    each = torch.rand(TOKENS, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
    scaled = inputs._replace(gradients=inputs.gradients * each)
    codes = [by_token.select(found, params, {}, CLOCK).code for found in (inputs, scaled)]
    assert torch.equal(kept(codes[0]), kept(codes[1]))
    over_tokens = Gradient(k=K, beta=0.7, norm="global")
    scaled = inputs._replace(gradients=7.0 * inputs.gradients)
    pairs = ((inputs, state_of(0.25)), (scaled, state_of(7 * 0.25)))
    codes = [over_tokens.select(found, params, state, CLOCK).code for found, state in pairs]
    assert torch.equal(kept(codes[0]), kept(codes[1]))


def test_a_large_beta_comes_to_the_product(params, inputs):
    product = Gradient(k=K, mode="mul").select(inputs, params, {}, CLOCK).code
    agreement = []
    for beta in (0.0, 0.3, 3.0, 1e9):
        code = Gradient(k=K, beta=beta).select(inputs, params, {}, CLOCK).code
        agreement.append(int((kept(code) & kept(product)).sum()))
    assert agreement == sorted(agreement)
    assert agreement[0] < agreement[-1] == int(kept(product).sum())


def test_nothing_flows_to_the_gradient_and_the_weights_get_those_of_the_kept_pairs(params, inputs):
    given = inputs.gradients.clone().requires_grad_()
    recipe = Gradient(k=K, beta=0.7)
    found = recipe.forward(inputs._replace(gradients=given), params, {}, CLOCK, 3.0)
    assert given.grad is None
    copies = {name: t.clone(memory_format=torch.preserve_format) for name, t in params.named().items()}
    adam = SparseAdam(Weights(**copies), AdamOptions(beta1=0.0, unit_rows=False, input_bias=False))
    adam.step(found.terms, 0.0)
    weights = {name: tensor.clone().requires_grad_() for name, tensor in params.named().items()}
    u = inputs.encoder @ weights["W_enc"] + weights["b_enc"]
    f = torch.relu(u) * kept(found.code)
    error = f @ weights["W_dec"] + weights["b_dec"] - inputs.target
    (error.square().sum(1).mean() / 3.0).backward()
    for name, tensor in weights.items():
        torch.testing.assert_close(
            adam.state_tensors()[f"{name}.exp_avg"], tensor.grad, rtol=1e-10, atol=1e-13
        )


def test_the_running_mean_starts_with_the_first_batch_and_forgets_over_a_share_of_the_run(params, inputs):
    recipe, clock = Gradient(k=K, norm="global"), Clock(0, 1000, TOKENS)
    state = recipe.init(params, SETUP)
    assert math.isnan(state[MEAN_C])
    mean = z_and_c(params, inputs)[1].mean()
    first = recipe.forward(inputs, params, state, clock, 1.0)
    # Measured by its own mean, the first batch selects as one with that running mean.
    again = recipe.select(inputs, params, state_of(float(mean)), clock).code
    assert torch.equal(first.code.dense(), again.dense())
    state = recipe.after_step(params, first, state, clock)
    torch.testing.assert_close(state[MEAN_C].double(), mean, rtol=1e-6, atol=0)
    tripled = inputs._replace(gradients=3 * inputs.gradients)
    second = recipe.forward(tripled, params, state, clock, 1.0)
    state = recipe.after_step(params, second, state, clock)
    weight = 1 / (AVERAGED_SHARE * clock.steps)
    torch.testing.assert_close(state[MEAN_C].double(), mean * (1 + 2 * weight), rtol=1e-6, atol=0)


def test_gradients_that_are_all_zero_leave_topk(params, inputs):
    still = inputs._replace(gradients=torch.zeros_like(inputs.gradients))
    plain = TopK(k=K).select(inputs, params, {}, CLOCK).code
    for recipe in (Gradient(k=K), Gradient(k=K, norm="global")):
        state = recipe.init(params, SETUP)
        found = recipe.forward(still, params, state, CLOCK, 1.0)
        assert torch.equal(found.code.dense(), plain.dense())
        state = recipe.after_step(params, found, state, CLOCK)
        form = recipe.finalise(params, state, lambda n: [inputs.encoder])
        assert form.attribution is not None


@pytest.mark.parametrize("normalisation", ["scale", "none", "layer_norm", "unit_norm"])
@pytest.mark.parametrize(
    "options", [{"norm": "token"}, {"norm": "global"}, {"norm": "global", "mode": "mul"}]
)
def test_encode_with_raw_gradients_ranks_as_the_training_did(source, normalisation, options):
    member = train(member_of(source, {"beta": 0.5} | options, normalisation=normalisation), source)
    sae, _ = finished_sae(member, source)
    x, g = source.x["a"][:512], source.gradients["a"][:512]
    inputs = member.views.batch({"a": HookRows(x, g)}, member.params.b_dec.detach(), gradients=True)
    if normalisation == "scale":
        assert member.views.inputs[0].normalisation.factor != pytest.approx(1, rel=0.1)
    trained = member.config.recipe.select(inputs, member.params, member.recipe_state, CLOCK).code
    assert torch.equal(kept(sae.encode(x, g)), kept(trained))
    assert (kept(sae.encode(x)) != kept(trained)).any()
    plain = TopK(k=4).select(inputs, member.params, {}, CLOCK).code
    assert torch.equal(kept(sae.encode(x)), kept(plain))


def test_the_saved_mean_is_that_of_raw_gradients(source):
    member = train(member_of(source, {"norm": "global"}), source)
    sae, _ = finished_sae(member, source)
    c = (source.gradients["a"] @ sae.W_dec.T).abs()
    assert sae.config.attribution["mean_c"] == pytest.approx(float(c.mean()), rel=0.05)
    assert float(member.recipe_state[MEAN_C]) != pytest.approx(float(c.mean()), rel=0.1)


def test_the_running_mean_is_a_part_of_the_checkpoint(source):
    straight = train(member_of(source, {"norm": "global"}), source)
    half = train(member_of(source, {"norm": "global"}), source, last=10)
    saved = {name: tensor.clone() for name, tensor in half.state_tensors().items()}
    assert f"recipe.{MEAN_C}" in saved
    again = member_of(source, {"norm": "global"})
    again.restore(saved, step=10, skipped=0)
    train(again, source, first=10)
    assert all(torch.equal(t, again.state_tensors()[name]) for name, t in straight.state_tensors().items())


def test_it_learns_and_keeps_k_features(source):
    member = train(member_of(source, {}, steps=80, lr=(1e-2,)), source, last=80)
    assert float(member.outcome.result.metrics["fvu"]) < 0.35
    sae, _ = finished_sae(member, source)
    code = sae.encode(source.x["a"], source.gradients["a"])
    assert float(code.l0().float().mean()) == pytest.approx(4, rel=0.02)


def test_a_store_without_gradients_is_refused_before_anything_is_written(tmp_path):
    store = Store.from_tensors(tmp_path / "store", torch.randn(256, 8), dtype="float32")
    config = train_config(store, "gradient", recipe_options={"k": 2}, width=16, tokens=128, batch=64)
    with pytest.raises(
        UsageError, match=r"gradient ranks by gradients .* cache them with --gradients"
    ) as found:
        train_run(config, StoreSource(store), tmp_path / "run", HowToTrain(quiet=True))
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 0}, "gradient: k must"), ({"beta": -0.1}, "beta must be"), ({"beta": math.inf}, "beta must be")],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Gradient(**options).check(D_SAE)


def test_views_give_gradients_of_the_normalised_target():
    view = View("hook", 2, Normalisation(kind="scale", factor=4.0))
    x = torch.tensor([[1.0, 2.0]])
    found = Views((view,), (view,)).batch({"hook": HookRows(x, x)}, None, gradients=True)
    assert torch.equal(found.gradients, x / 4)
