"""Transcoders and crosscoders: metrics about the target, against closed forms and a float64 loop over the model."""

import dataclasses
import json

import pytest
import torch
from form_helpers import Loop, both_signs, make_sae, random_weights

import saelab.evaluation.splice
from saelab.activations.cache import cache_activations
from saelab.activations.own import OwnBatch
from saelab.activations.store import Store
from saelab.cli.evaluate import describe_evaluation
from saelab.errors import UsageError
from saelab.evaluation import sources
from saelab.evaluation.evaluate import evaluate, evaluate_together
from saelab.evaluation.reconstruction import ReconstructionAccumulator
from saelab.evaluation.spec import EvaluationConfig

READ, GIVEN = "model.layers.0.mlp.down_proj.input", "model.layers.0.mlp.down_proj.output"
FIRST, LAST = "model.layers.0.output", "model.layers.1.mlp.down_proj.output"
WIDTHS = {READ: 64, GIVEN: 32, FIRST: 32, LAST: 32}
QUIET = {"progress": False}


def widths(*hooks):
    return {hook: WIDTHS[hook] for hook in hooks}


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    """A store of several hookpoints; BOS, which is massive, has no rows."""
    config = dataclasses.replace(
        sources.saved_config(world.masked.path), model=world.lm.spec, at=tuple(WIDTHS), tokens=1_500
    )
    return cache_activations(config, tmp_path_factory.mktemp("forms") / "store", progress=False, lm=world.lm)


@pytest.fixture
def base(known_sae, store):
    return known_sae(lambda x: x, store).config


@pytest.fixture
def linear(world, base):
    """The transcoder that is the linear layer from READ to GIVEN, exactly."""
    weight = world.lm.hf.get_submodule("model.layers.0.mlp.down_proj").weight.detach().T.float()
    return make_sae(base, *both_signs(weight.contiguous()), inputs=widths(READ), outputs=widths(GIVEN))


@pytest.fixture
def transcoder(base):
    """One of no use, which damages the model."""
    return make_sae(base, *random_weights(64, 80, 32), inputs=widths(READ), outputs=widths(GIVEN))


def heldout(store, *hooks):
    n_rows = store.n_rows(hooks[0], "heldout")
    return torch.cat([store.rows(hook, "heldout", 0, n_rows).x for hook in hooks], dim=1)


def test_a_transcoder_that_is_the_layer_recovers_everything(world, store, linear):
    found = evaluate(linear, store, lm=world.lm, **QUIET)
    assert found.reconstruction.fvu < 1e-10 and found.reconstruction.cosine == pytest.approx(1, abs=1e-9)
    assert found.reconstruction.l0 == 64, "the sign of each input is one feature"
    assert found.loss.ce_recovered_zero == pytest.approx(1, abs=1e-5)
    assert found.loss.ce_recovered_mean == pytest.approx(1, abs=1e-5)
    assert found.loss.kl < 1e-6
    assert abs(found.loss.ce_zero_ablation - found.loss.ce_clean) > 0.01, (
        "otherwise nothing was put to the test"
    )


def test_a_skip_map_alone_that_is_the_layer_recovers_everything(world, store, base, linear):
    skip = linear.W_dec[:64].clone()
    nothing = make_sae(
        base, torch.zeros(64, 8), torch.zeros(8, 32), inputs=widths(READ), outputs=widths(GIVEN), skip=skip
    )
    found = evaluate(nothing, store, lm=world.lm, **QUIET)
    assert found.reconstruction.fvu < 1e-10 and found.reconstruction.l0 == 0
    assert found.loss.ce_recovered_zero == pytest.approx(1, abs=1e-5)


def test_no_features_are_the_two_ablations(world, store, base):
    def silent(b_dec):
        weights = torch.zeros(64, 8), torch.zeros(8, 32)
        return make_sae(base, *weights, b_dec, inputs=widths(READ), outputs=widths(GIVEN))

    mean = store.statistics(GIVEN).mean.float()
    zero, constant = evaluate_together([silent(torch.zeros(32)), silent(mean)], store, lm=world.lm, **QUIET)
    assert zero.loss.ce_spliced == zero.loss.ce_zero_ablation and zero.loss.ce_recovered_zero == 0
    assert constant.loss.ce_spliced == constant.loss.ce_mean_ablation and constant.loss.ce_recovered_mean == 0
    target = heldout(store, GIVEN).double()
    own = target.mean(0)
    spread = (target - own).square().sum()
    assert zero.reconstruction.fvu == pytest.approx(float(target.square().sum() / spread), rel=1e-12)
    shift = len(target) * (own - mean.double()).square().sum()
    assert constant.reconstruction.fvu == pytest.approx(float(1 + shift / spread), rel=1e-12)


def test_ablations_are_of_the_target_whatever_is_read(world, store, known_sae, transcoder):
    autoencoder = known_sae(lambda x: 0.5 * x, store, hook=GIVEN)
    one, other = (evaluate(sae, store, lm=world.lm, **QUIET).loss for sae in (transcoder, autoencoder))
    assert one.ce_zero_ablation == other.ce_zero_ablation and one.ce_mean_ablation == other.ce_mean_ablation
    assert one.ce_spliced != other.ce_spliced


def test_metrics_of_a_transcoder_equal_dense_float64_and_the_loop(world, store, transcoder):
    found = evaluate(transcoder, store, lm=world.lm, **QUIET)
    target, output = heldout(store, GIVEN).double(), transcoder(heldout(store, READ)).double()
    spread = (target - target.mean(0)).square().sum()
    assert found.reconstruction.fvu == pytest.approx(
        float((target - output).square().sum() / spread), rel=1e-9
    )
    assert found.reconstruction.mse == pytest.approx(float((target - output).square().mean()), rel=1e-9)
    ce, kl = Loop(world, store).spliced(transcoder)
    assert found.loss.ce_spliced == pytest.approx(ce, abs=2e-5)
    assert found.loss.kl == pytest.approx(kl, abs=2e-5) and kl > 0.01


def block_diagonal(base, parts, hooks):
    """Return the crosscoder that is one autoencoder for each hookpoint, side by side."""
    W_enc = torch.block_diag(*(sae.W_enc for sae in parts))
    W_dec = torch.block_diag(*(sae.W_dec for sae in parts))
    return make_sae(base, W_enc, W_dec, inputs=widths(*hooks), outputs=widths(*hooks))


@pytest.fixture
def pair(base):
    """Two autoencoders, and the crosscoder of both."""
    hooks = (FIRST, LAST)
    parts = [
        make_sae(base, *random_weights(32, 48, 32, seed), inputs=widths(hook), outputs=widths(hook))
        for seed, hook in enumerate(hooks)
    ]
    return parts, block_diagonal(base, parts, hooks)


def test_a_crosscoder_of_two_autoencoders_has_the_fvu_that_their_sums_predict(store, pair):
    parts, crosscoder = pair
    one, other = (evaluate(sae, store, **QUIET).reconstruction for sae in parts)
    found = evaluate(crosscoder, store, **QUIET)
    assert found.fvu_by_hook == pytest.approx({FIRST: one.fvu, LAST: other.fvu}, rel=1e-5)
    spreads = [part.mse / part.fvu for part in (one, other)]
    assert found.reconstruction.fvu == pytest.approx((one.mse + other.mse) / sum(spreads), rel=1e-5)
    assert abs(one.fvu - other.fvu) > 0.01 * one.fvu, "the weights of the parts must matter"
    assert found.reconstruction.mse == pytest.approx((one.mse + other.mse) / 2, rel=1e-5)
    assert found.reconstruction.l0 == pytest.approx(one.l0 + other.l0)
    assert found.to_json()["fvu_by_hook"] == found.fvu_by_hook
    assert "fvu_by_hook" not in evaluate(parts[0], store, **QUIET).to_json()


def test_all_targets_of_a_crosscoder_are_replaced_at_once_by_what_the_clean_run_gives(world, store, pair):
    found = evaluate(pair[1], store, lm=world.lm, **QUIET).loss
    ce, kl = Loop(world, store).spliced(pair[1])
    assert found.ce_spliced == pytest.approx(ce, abs=2e-5)
    assert found.kl == pytest.approx(kl, abs=2e-5) and kl > 0.01
    for part in pair[0]:
        alone = evaluate(part, store, lm=world.lm, **QUIET).loss
        assert abs(found.ce_spliced - alone.ce_spliced) > 1e-3, "both must matter"


def test_a_hookpoint_that_is_constant_is_said_to_be(tmp_path, base):
    x = torch.randn(2_000, 2, generator=torch.Generator().manual_seed(0))
    own = Store.from_batches(
        tmp_path / "own",
        [OwnBatch({"a": x, "b": torch.ones(2_000, 3)}, torch.arange(2_000))],
        heldout_share=0.5,
        dtype="float32",
    )
    weights = torch.zeros(5, 4), torch.zeros(4, 5)
    base = dataclasses.replace(base, model_identity="")
    record = evaluate(
        make_sae(base, *weights, inputs={"a": 2, "b": 3}, outputs={"a": 2, "b": 3}), own, **QUIET
    ).to_json()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["fvu"] > 1 and record["fvu_by_hook"]["b"] is None
    assert record["undefined"]["fvu_by_hook.b"] == "the evaluated activations are all equal"


def test_parts_must_make_up_the_target():
    with pytest.raises(ValueError, match="do not make up d_out 5"):
        ReconstructionAccumulator(5, 4, (2, 2))


def test_several_cost_n_and_three_passes_and_get_the_bits_that_each_gets_alone(
    world, store, linear, transcoder, monkeypatch
):
    alone = [evaluate(sae, store, lm=world.lm, **QUIET).to_json() for sae in (linear, transcoder)]
    passes = []
    forward = saelab.evaluation.splice.final_hidden
    monkeypatch.setattr(
        saelab.evaluation.splice, "final_hidden", lambda lm, ids: passes.append(ids) or forward(lm, ids)
    )
    config = EvaluationConfig(batch_rows=100)
    evaluate_together([linear, transcoder, linear], store, lm=world.lm, config=config, **QUIET)
    assert len(passes) == 3 + 3
    found = evaluate_together([transcoder, linear], store, lm=world.lm, **QUIET)
    assert [one.to_json() for one in reversed(found)] == alone


@pytest.mark.parametrize("form", ["transcoder", "crosscoder"])
@pytest.mark.parametrize(("tile", "batch_rows"), [(64, 3), (5000, 16)])
def test_batch_sizes_change_nothing_but_rounding(world, store, transcoder, pair, form, tile, batch_rows):
    sae = transcoder if form == "transcoder" else pair[1]
    usual = evaluate(sae, store, lm=world.lm, **QUIET)
    config = EvaluationConfig(tile=tile, batch_rows=batch_rows)
    other = evaluate(sae, store, lm=world.lm, config=config, **QUIET)
    for name in ("reconstruction", "loss"):
        expected = dataclasses.astuple(getattr(usual, name))
        bound = {"rel": 1e-12} if name == "reconstruction" else {"abs": 2e-5}
        assert dataclasses.astuple(getattr(other, name)) == pytest.approx(expected, **bound)
    assert other.fvu_by_hook == pytest.approx(usual.fvu_by_hook, rel=1e-12)


def test_saes_of_other_hookpoints_and_missing_hookpoints_are_refused(world, store, linear, pair):
    with pytest.raises(UsageError, match=f"together, not of {READ} to {GIVEN} and of {FIRST}, {LAST}"):
        evaluate_together([linear, pair[1]], store, **QUIET)
    with pytest.raises(UsageError, match=f"no activations of {READ}, {GIVEN}, which the SAE needs"):
        evaluate(linear, world.masked, **QUIET)
    with pytest.raises(UsageError, match=f"no activations of {LAST}, which .* it has {FIRST}$"):
        evaluate(pair[1], world.masked, **QUIET)


def test_the_record_and_the_screen_say_what_is_read_and_what_is_reconstructed(world, store, transcoder, pair):
    record = {"run": "R"} | evaluate(transcoder, store, **QUIET).to_json()
    assert (record["input_hooks"], record["output_hooks"], record["hook"]) == ([READ], [GIVEN], GIVEN)
    assert f"reads {READ}, reconstructs {GIVEN}" in describe_evaluation(record)
    record = {"run": "R"} | evaluate(pair[1], store, **QUIET).to_json()
    shown = describe_evaluation(record).splitlines()
    assert not any("reads" in line for line in shown)
    (line,) = [line for line in shown if f"FVU of {LAST}" in line]
    assert line.split()[-1] == f"{record['fvu_by_hook'][LAST]:.4f}"
