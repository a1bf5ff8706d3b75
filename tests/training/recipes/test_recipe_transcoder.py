"""Transcoders with and without a linear part: gradients, the first weights, the affine optimum, and the saved form."""

import json

import pytest
import torch
from memory_source import MemorySource

import saelab
from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.sae.config import Normalisation
from saelab.training.dead import DeadFeatureTracker
from saelab.training.finish import finished_sae
from saelab.training.grid import Grid, make_configs
from saelab.training.member import make_member
from saelab.training.memory import cost_of
from saelab.training.passes import HowToTrain
from saelab.training.recipes.moments import Clock, Inputs
from saelab.training.recipes.skip_transcoder import SkipTranscoder
from saelab.training.recipes.transcoder import Transcoder, answer_with_targets
from saelab.training.single import train_run
from saelab.training.step import Step
from saelab.training.views import HookRows, View, Views
from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights

D_IN, D_OUT, D_SAE, K, TOKENS = 10, 7, 40, 5, 64
AUX_K, COEFFICIENT, VARIANCE = 6, 1 / 32, 3.0
S, T = 1.7, 0.6
BATCH, WIDTH, STEPS = 64, 48, 60
CLOCK = Clock(0, 100, TOKENS)
EITHER = pytest.mark.parametrize("name", ["transcoder", "skip-transcoder"])


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def params():
    W_dec = random(D_SAE, D_OUT, seed=0)
    return SAEParameters(
        W_enc=random(D_SAE, D_IN, seed=1).T,
        b_enc=0.1 * random(D_SAE, seed=2),
        W_dec=W_dec / W_dec.norm(dim=1, keepdim=True),
        b_dec=random(D_OUT, seed=3),
    )


def dense_loss(leaves, x, y, dead):
    """The objective written with dense matrices; ``leaves`` may hold a W_skip."""
    skipped = x @ leaves["W_skip"] if "W_skip" in leaves else 0.0
    u = x @ leaves["W_enc"] + leaves["b_enc"]
    kept = torch.zeros_like(u).scatter(1, u.topk(K, dim=1).indices, 1.0)
    y_hat = (torch.relu(u) * kept) @ leaves["W_dec"] + leaves["b_dec"] + skipped
    main = (y - y_hat).square().sum(1).mean() / VARIANCE
    e = (y - y_hat).detach()
    spare = torch.where(dead, u, torch.tensor(-torch.inf, dtype=u.dtype))
    chosen = torch.zeros_like(u).scatter(1, spare.topk(AUX_K, dim=1).indices, 1.0)
    e_hat = (torch.relu(u) * chosen) @ leaves["W_dec"]
    return main, main + COEFFICIENT * (e - e_hat).square().sum() / (e - e.mean(0)).square().sum()


@pytest.mark.parametrize("recipe", [Transcoder(k=K), SkipTranscoder(k=K)])
def test_gradients_equal_dense_autograd_and_metrics_are_about_the_target(params, recipe):
    x, y, centre = random(TOKENS, D_IN, seed=4) + 1, random(TOKENS, D_OUT, seed=5), random(D_IN, seed=6)
    state = {"centre": centre}
    if isinstance(recipe, SkipTranscoder):
        state["W_skip"] = random(D_IN, D_OUT, seed=7)
    dead = torch.arange(D_SAE) < 20
    step = Step(
        params=params,
        recipe=recipe,
        views=Views(
            (View("in", D_IN, Normalisation(kind="scale", factor=S)),),
            (View("out", D_OUT, Normalisation(kind="scale", factor=T)),),
        ),
        variance=VARIANCE,
        aux_k=AUX_K,
        aux_coefficient=COEFFICIENT,
    )
    tracker = DeadFeatureTracker(torch.where(dead, 100, 0), after_tokens=50)
    result = step.run({"in": HookRows(x), "out": HookRows(y)}, state, tracker, CLOCK)
    copies = {name: t.clone(memory_format=torch.preserve_format) for name, t in params.named().items()}
    adam = SparseAdam(Weights(**copies), AdamOptions(beta1=0.0, unit_rows=False, input_bias=False))
    adam.step(result.found.terms, 0.0)
    found = {name: adam.state_tensors()[f"{name}.exp_avg"] for name in copies} | result.found.own

    own = {name: state[name] for name in recipe.traits.own_parameters}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in (params.named() | own).items()}
    main, total = dense_loss(leaves, x * S - centre, y * T, dead)
    total.backward()
    assert found.keys() == leaves.keys()
    for name, leaf in leaves.items():
        torch.testing.assert_close(found[name], leaf.grad, rtol=1e-9, atol=1e-12, msg=name)
    torch.testing.assert_close(result.metrics["loss"], total.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(result.metrics["fvu"], main.detach(), rtol=1e-10, atol=0)


def test_the_first_decoder_answers_with_the_targets_and_does_not_overshoot(params):
    params.b_enc.zero_()
    params.W_enc[:, 3] = 0  # a feature that never fires
    rows = params.W_dec.clone()
    x, y = random(TOKENS, D_IN, seed=4), random(TOKENS, D_OUT, seed=5)
    u = x @ params.W_enc
    kept = torch.zeros_like(u).scatter(1, u.topk(K, dim=1).indices, 1.0)
    answers = (torch.relu(u) * kept).T @ y
    answer_with_targets(params, x, y, K)
    fired = answers.norm(dim=1) > 0
    assert fired.sum() > D_SAE / 2
    assert not fired[3]
    torch.testing.assert_close(params.W_dec.norm(dim=1), torch.ones(D_SAE).double())
    torch.testing.assert_close(params.W_dec[fired], answers[fired] / answers[fired].norm(dim=1, keepdim=True))
    assert torch.equal(params.W_dec[~fired], rows[~fired])
    y_hat = (torch.relu(x @ params.W_enc) * kept) @ params.W_dec
    losses = [float((scale * y_hat - y).square().sum()) for scale in (0.99, 1.0, 1.01, 0.0)]
    assert losses[1] == min(losses)


def test_without_features_the_linear_part_converges_to_the_least_squares_affine_map():
    """The loss is then a quadratic of W_skip and b_dec: a Newton step along their gradients ends at its minimum."""
    x = random(256, 4, seed=1) + 2
    y = torch.relu(x) @ random(4, 3, seed=2) + random(256, 3, seed=3)
    centre = x.mean(0)
    silent = SAEParameters(
        torch.zeros(8, 4).double().T, torch.zeros(8).double(), torch.eye(8)[:, :3].double(), y.mean(0) + 0.5
    )
    recipe, state = SkipTranscoder(k=2), {"centre": centre, "W_skip": random(4, 3, seed=4)}

    def gradients():
        found = recipe.forward(recipe.prepare(Inputs(x, y), state), silent, state, CLOCK, 1.0)
        assert found.code.l0().sum() == 0
        g_out = found.terms[0].g_out
        assert g_out is not None
        return found.own["W_skip"], g_out.sum(0)

    of_skip, of_bias = gradients()
    curvature = 2 * (x - centre).T @ (x - centre) / len(x)
    state["W_skip"] -= torch.linalg.solve(curvature, of_skip)
    silent.b_dec.sub_(of_bias / 2)
    for gradient in gradients():
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    form = recipe.finalise(silent, state, lambda rows: [x])
    assert form.W_skip is not None
    assert form.params is not None
    design = torch.cat([x, torch.ones(256, 1).double()], 1)
    affine = torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(form.W_skip, affine[:4])
    torch.testing.assert_close(form.params.b_dec, affine[4])


@pytest.fixture(scope="module")
def source():
    return MemorySource()


def make_config(source, name, steps=STEPS, k=4, options=None, **further):
    grid = Grid(
        recipes=(name,),
        k=(k,),
        at=("a",),
        target_at=("b",),
        widths=(WIDTH,),
        recipe_options={name: options or {}},
    )
    fixed = {"batch": BATCH, "checkpoint_every": 100, "log_every": 20, "device": "cpu"}
    return make_configs(source, grid, tokens=steps * BATCH, **(fixed | further))[0]


def trained_member(source, config, folder, steps=15):
    member = make_member("state", config, source, folder)
    for step in range(steps):
        part = slice(step * BATCH, (step + 1) * BATCH)
        member.train_on({hook: HookRows(x[part]) for hook, x in source.x.items()})
    return member


@EITHER
@pytest.mark.parametrize("allocation", ["token", "batch"])
def test_the_folded_form_on_raw_activations_equals_the_training_forward(source, tmp_path, name, allocation):
    config = make_config(source, name, options={"allocation": allocation})
    member = trained_member(source, config, tmp_path)
    sae, _ = finished_sae(member, source)
    assert (sae.W_skip is not None) == (name == "skip-transcoder") == sae.config.has_skip
    assert (sae.config.d_in, sae.config.d_out) == (16, 12)
    # Of the batch-wide rule the whole data are one batch: calibration and selection then see the same.
    x, y = source.x["a"], source.x["b"]
    found = member.config.recipe.forward(
        member.config.recipe.prepare(
            member.views.batch({"a": HookRows(x), "b": HookRows(y)}, None, gradients=False),
            member.recipe_state,
        ),
        member.params,
        member.recipe_state,
        member.clock,
        1.0,
    )
    factor = member.views.targets[0].normalisation.factor
    x_hat, code = sae.reconstruct(x)
    torch.testing.assert_close(x_hat - y, found.error / factor, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(code.dense(), found.code.dense() / factor, rtol=1e-4, atol=1e-4)
    if allocation == "batch":
        assert int(code.l0().sum()) == 4 * len(x)


@pytest.fixture(scope="module")
def folders(source, tmp_path_factory):
    """A finished run of each."""
    out = tmp_path_factory.mktemp("transcoders")
    for name in ("transcoder", "skip-transcoder"):
        train_run(make_config(source, name, 100), source, out / name, HowToTrain(quiet=True))
    return out


def share_unexplained(source, folder):
    y = source.x["b"]
    return float((saelab.load(folder)(source.x["a"]) - y).square().sum() / (y - y.mean(0)).square().sum())


@EITHER
def test_a_run_learns_and_loads_and_its_metrics_are_those_of_the_target(source, folders, name):
    sae = saelab.load(folders / name)
    fvu = share_unexplained(source, folders / name)
    assert fvu < 0.25
    assert sae.encode(source.x["a"]).l0().float().mean() <= 4
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(WIDTH), rtol=1e-5, atol=1e-5)
    last = json.loads((folders / name / "metrics.jsonl").read_text().splitlines()[-1])
    assert abs(last["fvu"] - fvu) < 0.05


def test_the_linear_part_helps_at_the_same_number_of_features(source, folders):
    with_it, without = (share_unexplained(source, folders / n) for n in ("skip-transcoder", "transcoder"))
    assert with_it < without


def test_what_cannot_work_is_refused(source):
    with pytest.raises(UsageError, match="skip-transcoder: k must be a whole number from 1 to the width 48"):
        make_config(source, "skip-transcoder", k=49)
    with pytest.raises(UsageError, match="transcoder is not defined for --normalisation layer_norm"):
        make_config(source, "transcoder", normalisation="layer_norm")
    with pytest.raises(UsageError, match="name it with --target-at"):
        make_configs(source, Grid(recipes=("transcoder",), at=("a",)), tokens=1000, batch=10)


def test_several_hookpoints_are_paired_with_as_many_targets_or_one(source):
    def pairs(at, target_at):
        grid = Grid(recipes=("transcoder",), k=(2,), at=at, target_at=target_at, widths=(WIDTH,))
        return [(c.hook, c.target_hook) for c in make_configs(source, grid, tokens=1000, batch=10)]

    assert pairs(("a", "b"), ("b", "a")) == [("a", "b"), ("b", "a")]
    assert pairs(("a", "b"), ("b",)) == [("a", "b"), ("b", "b")]
    with pytest.raises(UsageError, match=r"1 hookpoints to read \(--at\) and 2 to reconstruct"):
        pairs(("a",), ("a", "b"))


def test_the_memory_plan_counts_the_linear_map(source):
    plain, skip = (cost_of(make_config(source, name), source) for name in ("transcoder", "skip-transcoder"))
    numbers = source.hook("a").d_in * source.hook("b").d_in
    assert skip.parameters - plain.parameters == numbers
    assert skip.held_bytes - plain.held_bytes == 4 * 4 * numbers
