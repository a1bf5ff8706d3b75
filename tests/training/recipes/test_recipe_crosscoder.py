"""Crosscoders: what is ranked, gradients, thresholds that survive folding, and two stores as one source."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from memory_source import MemorySource

import saelab
from saelab.activations.aligned import AlignedSource
from saelab.activations.store import Store
from saelab.api import train_config
from saelab.errors import DamagedFileError, UsageError
from saelab.evaluation.synthetic.generator import PlantedFeatures
from saelab.sae.autoencoder import SAEParameters
from saelab.sae.crosscoder_norms import relative_norms, source_norms
from saelab.storage.manifest import read_manifest, write_manifest
from saelab.training.finish import finished_sae
from saelab.training.grid import Grid, make_configs
from saelab.training.member import make_member
from saelab.training.passes import HowToTrain
from saelab.training.recipes.crosscoder import Crosscoder, summed_norms
from saelab.training.recipes.moments import Clock, Inputs
from saelab.training.run import Run
from saelab.training.single import train_run
from saelab.training.views import HookRows
from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights

WIDTHS, D_SAE, TOKENS = (4, 6), 24, 40
BATCH, WIDTH = 64, 48
CLOCK = Clock(0, 100, TOKENS)


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def params():
    W_dec = random(D_SAE, sum(WIDTHS), seed=0)
    W_dec[:8, WIDTHS[0] :] *= 0.01  # features of the first source alone
    return SAEParameters(
        W_enc=random(D_SAE, sum(WIDTHS), seed=1).T,
        b_enc=0.1 * random(D_SAE, seed=2),
        W_dec=W_dec / W_dec.norm(dim=1, keepdim=True),
        b_dec=random(sum(WIDTHS), seed=3),
    )


STATE = {"widths": torch.tensor(WIDTHS)}


def kept_by_hand(params, encoder, k):
    """The `k * tokens` largest scores, with dense matrices."""
    z = encoder @ params.W_enc + params.b_enc
    scale = params.W_dec[:, : WIDTHS[0]].norm(dim=1) + params.W_dec[:, WIDTHS[0] :].norm(dim=1)
    scores = torch.relu(z) * scale
    least = scores.flatten().topk(round(k * len(encoder))).values[-1]
    return torch.relu(z) * (scores >= least)


def test_the_score_weighs_a_feature_with_the_sum_of_its_norms(params):
    x = random(TOKENS, sum(WIDTHS), seed=4)
    selection = Crosscoder(k=3).select(Inputs(x, x), params, STATE, CLOCK)
    by_hand = kept_by_hand(params, x, 3)
    torch.testing.assert_close(selection.code.dense(), by_hand)
    plain = torch.relu(x @ params.W_enc + params.b_enc)
    by_z = plain * (plain >= plain.flatten().topk(3 * TOKENS).values[-1])
    assert not torch.equal(by_hand > 0, by_z > 0)
    assert (summed_norms(params, STATE) >= 1 - 1e-12).all()
    assert (summed_norms(params, STATE) <= 2**0.5 + 1e-12).all()


def test_gradients_equal_dense_autograd(params):
    x = random(TOKENS, sum(WIDTHS), seed=4)
    inputs = Inputs(x - params.b_dec, x)
    found = Crosscoder(k=3).forward(inputs, params, STATE, CLOCK, 2.0)
    copies = {name: t.clone(memory_format=torch.preserve_format) for name, t in params.named().items()}
    adam = SparseAdam(Weights(**copies), AdamOptions(beta1=0.0, unit_rows=False))
    adam.step(found.terms, 0.0)

    mask = kept_by_hand(params, inputs.encoder, 3) > 0
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.named().items()}
    z = (x - leaves["b_dec"]) @ leaves["W_enc"] + leaves["b_enc"]
    error = (z * mask) @ leaves["W_dec"] + leaves["b_dec"] - x
    a, b = error.split(WIDTHS, 1)
    loss = (a.square().sum(1) + b.square().sum(1)).mean() / 2.0
    loss.backward()
    torch.testing.assert_close(found.loss.total, loss.detach())
    for name, leaf in leaves.items():
        torch.testing.assert_close(
            adam.state_tensors()[f"{name}.exp_avg"], leaf.grad, rtol=1e-9, atol=1e-12, msg=name
        )


def test_a_rescaled_feature_is_the_same_function_with_the_same_score(params):
    """The gauge: with a free norm c the row is `c W_dec`, the value `z / c`, the score the same."""
    x, c = random(TOKENS, sum(WIDTHS), seed=4), torch.linspace(0.2, 5, D_SAE).double()
    free = replace(params, W_enc=params.W_enc / c, b_enc=params.b_enc / c, W_dec=params.W_dec * c[:, None])
    unit, other = (Crosscoder(k=3).select(Inputs(x, x), p, STATE, CLOCK).code for p in (params, free))
    torch.testing.assert_close(unit.dense() @ params.W_dec, other.dense() @ free.W_dec)


@pytest.fixture(scope="module")
def source():
    return MemorySource()


def make_config(source, steps=60, k=4.5, **further):
    grid = Grid(recipes=(Crosscoder(k=k),), widths=(WIDTH,))  # all hookpoints, where none is named
    fixed = {"batch": BATCH, "checkpoint_every": 100, "log_every": 20, "device": "cpu"}
    return make_configs(source, grid, tokens=steps * BATCH, **(fixed | further))[0]


def test_the_folded_form_keeps_what_the_threshold_on_the_score_keeps(tmp_path):
    source = MemorySource()
    source.x["b"] *= 10  # the sources' scales differ
    member = make_member("state", make_config(source), source, tmp_path)
    for step in range(15):
        part = slice(step * BATCH, (step + 1) * BATCH)
        member.train_on({hook: HookRows(x[part]) for hook, x in source.x.items()})
    sae, _ = finished_sae(member, source)
    assert sae.config.input_hooks == sae.config.output_hooks == ("a", "b")
    assert sae.config.input_widths == (16, 12)
    x = torch.cat([source.x["a"], source.x["b"]], 1)
    # The whole data as one batch: selection and calibration then see the same.
    inputs = member.views.batch(
        {hook: HookRows(rows) for hook, rows in source.x.items()}, member.params.b_dec, gradients=False
    )
    found = member.config.recipe.forward(inputs, member.params, member.recipe_state, member.clock, 1.0)
    factors = torch.cat(
        [torch.full((view.width,), view.normalisation.factor) for view in member.views.targets]
    )
    assert factors.min() < factors.max() / 3
    x_hat, code = sae.reconstruct(x)
    assert int(code.l0().sum()) == round(4.5 * len(x))
    torch.testing.assert_close((x_hat - x) * factors, found.error, rtol=1e-3, atol=1e-3)
    assert torch.equal(code.dense() > 0, found.code.dense() > 0)


def test_a_run_learns_both_sources_and_loads(source, tmp_path):
    config = make_config(source, steps=100)
    run = train_run(config, source, tmp_path / "run", HowToTrain(quiet=True))
    sae = saelab.load(tmp_path / "run")
    x = torch.cat([source.x["a"], source.x["b"]], 1)
    error = sae(x) - x
    for part in (slice(0, 16), slice(16, 28)):
        spread = (x[:, part] - x[:, part].mean(0)).square().sum()
        assert error[:, part].square().sum() / spread < 0.25
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(WIDTH), rtol=1e-5, atol=1e-5)
    assert abs(float(sae.encode(x).l0().float().mean()) - 4.5) < 0.01
    assert json.loads((run.path / "config.json").read_text())["further_hooks"] == ["b"]


def test_two_stores_share_a_dictionary_and_the_run_names_both(tmp_path):
    planted = PlantedFeatures(n_features=24, d_in=12, mean_active=2.0, seed=0)
    x = torch.cat([planted.batch(index, 512).x for index in range(4)])
    turned = 3 * x @ torch.linalg.qr(random(12, 12, seed=1).float()).Q
    stores = [
        Store.from_tensors(tmp_path / name, rows, dtype="float32") for name, rows in (("A", x), ("B", turned))
    ]
    run = saelab.train(
        [stores[0], stores[1].path],
        "crosscoder",
        tokens=100 * BATCH,
        batch=BATCH,
        width=WIDTH,
        recipe_options={"k": 4},
        out=tmp_path / "run",
        quiet=True,
        device="cpu",
    )
    assert run.config.input_hooks == ("custom", "2:custom")
    assert (run.store_path, run.aligned_paths) == (stores[0].path.resolve(), (stores[1].path.resolve(),))
    assert run.config.source_identity == AlignedSource(stores).identity
    sae = run.sae()
    joined = torch.cat([x, turned], 1)
    assert (sae(joined) - joined).square().sum() / (joined - joined.mean(0)).square().sum() < 0.3
    # Every feature is in both sources, equally long in each one's own units.
    scales = [run.activation_statistics(hook).mean_square_norm ** -0.5 for hook in run.config.input_hooks]
    fired = sae.encode(joined).firing_counts() > 20
    shares = relative_norms(source_norms(sae.W_dec, sae.config.output_widths, scales))[fired, 0]
    assert (shares - 0.5).abs().median() < 0.05


def test_a_run_whose_manifest_names_aligned_stores_wrongly_is_refused(source, tmp_path):
    folder = train_run(make_config(source, 1), source, tmp_path / "run", HowToTrain(quiet=True)).path
    files = list(read_manifest(folder).files)
    for wrong in ("B", [3]):
        write_manifest(folder, "run", files, {"store": "A", "aligned_stores": wrong})
        with pytest.raises(DamagedFileError, match="its manifest"):
            Run.open(folder)


def test_what_cannot_work_is_refused(source):
    with pytest.raises(UsageError, match="crosscoder: k must be above 0 and at most the width 48, not 0"):
        make_config(source, k=0.0)
    with pytest.raises(UsageError, match="crosscoder is not defined for --normalisation unit_norm"):
        make_config(source, normalisation="unit_norm")


def test_a_hookpoint_that_is_named_twice_is_taken_once(tmp_path):
    store = Store.from_tensors(Path(tmp_path / "s"), torch.randn(600, 4), dtype="float32")
    config = train_config(store, "crosscoder", at=["custom", "custom"], tokens=128, batch=64, width=48)
    assert config.input_hooks == ("custom",)
