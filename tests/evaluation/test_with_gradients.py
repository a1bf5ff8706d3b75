"""g-SAEs in both inference forms, side by side: with gradients from the store or the model, and without."""

import dataclasses
import json

import pytest
import torch
from form_helpers import Loop, make_sae, random_weights

from saelab.activations.cache import cache_activations
from saelab.cli.evaluate import describe_evaluation
from saelab.evaluation import sources
from saelab.evaluation.evaluate import evaluate, evaluate_together
from saelab.evaluation.gradients import ModelGradients
from saelab.evaluation.places import Places
from saelab.evaluation.spec import EvaluationConfig
from saelab.evaluation.tokens import choose_tokens

HOOK = "model.layers.0.output"
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    """A store with gradients in the precision of the model."""
    config = dataclasses.replace(
        sources.saved_config(world.masked.path), model=world.lm.spec, tokens=1_500, gradients=True
    )
    folder = tmp_path_factory.mktemp("gradients") / "store"
    return cache_activations(config, folder, progress=False, lm=world.lm)


@pytest.fixture
def g_sae(known_sae, store):
    """Return a maker of g-SAEs that rank by z (1 + beta c)."""

    def make(beta):
        attribution = {"beta": beta, "mode": "add", "norm": "token", "mean_c": None}
        base = known_sae(lambda x: x, store).config
        rule = {"name": "per_token", "k": 4}
        places = {"inputs": {HOOK: 32}, "outputs": {HOOK: 32}}
        return make_sae(base, *random_weights(32, 64, 32), rule=rule, attribution=attribution, **places)

    return make


def plain(sae):
    """Return the same SAE without a use for gradients."""
    places = {"inputs": {HOOK: 32}, "outputs": {HOOK: 32}}
    return make_sae(sae.config, sae.W_enc, sae.W_dec, rule=sae.config.inference, **places)


def metrics(found):
    return dataclasses.astuple(found.reconstruction), dataclasses.astuple(found.loss)


def test_beta_0_equals_the_plain_form_bit_for_bit(world, store, g_sae):
    found = evaluate(g_sae(0.0), store, lm=world.lm, **QUIET)
    assert metrics(found.with_gradients) == metrics(found)


def test_the_top_level_is_inference_without_gradients(world, store, g_sae):
    ranked, usual = (evaluate(sae, store, lm=world.lm, **QUIET) for sae in (g_sae(3.0), plain(g_sae(3.0))))
    record, expected = ranked.to_json(), usual.to_json()
    assert record.pop("with_gradients")["fvu"] != record["fvu"]
    assert record == expected and "with_gradients" not in expected
    assert torch.equal(ranked.features.total, usual.features.total)


def test_reconstruction_with_the_stores_gradients_equals_dense_float64(store, g_sae):
    sae = g_sae(3.0)
    found = evaluate(sae, store, **QUIET)
    rows = store.rows(HOOK, "heldout", 0, store.n_rows(HOOK, "heldout"))
    x, output = rows.x.double(), sae.reconstruct(rows.x, rows.gradients).x_hat.double()
    fvu = float((x - output).square().sum() / (x - x.mean(0)).square().sum())
    assert found.with_gradients.reconstruction.fvu == pytest.approx(fvu, rel=1e-9)
    assert found.reconstruction.fvu != pytest.approx(fvu, rel=1e-3), "the selection must differ"
    assert found.with_gradients.gradients_from == "store"
    assert found.with_gradients.loss.kl is None
    assert found.with_gradients.undefined["kl"] == "no language model was given"


def test_the_loss_with_gradients_equals_the_loop_in_float64(world, store, g_sae):
    sae = g_sae(3.0)
    found = evaluate(sae, store, lm=world.lm, **QUIET)
    ce, kl = Loop(world, store).spliced(sae, with_gradients=True)
    assert found.with_gradients.loss.ce_spliced == pytest.approx(ce, abs=2e-4)
    assert found.with_gradients.loss.kl == pytest.approx(kl, abs=2e-4)
    assert abs(found.loss.ce_spliced - ce) > 2e-3, "the selection must differ"
    for name in ("ce_clean", "ce_zero_ablation", "ce_mean_ablation", "n_predictions"):
        assert getattr(found.with_gradients.loss, name) == getattr(found.loss, name)


def test_the_model_makes_the_gradients_that_a_store_lacks(world, store, g_sae):
    sae = g_sae(3.0)
    stored = evaluate(sae, store, lm=world.lm, **QUIET)
    config = EvaluationConfig(tile=100, batch_rows=3)  # so that tiles and batches do not end together
    fits = {"mean": store.statistics(HOOK).mean, "config": config}
    same_tokens = dataclasses.replace(sources.saved_config(store.path), gradients=False, loss=False)
    bare = cache_activations(same_tokens, store.path.parent / "bare", progress=False, lm=world.lm)
    made = evaluate(sae, bare, lm=world.lm, **fits, **QUIET)
    assert made.tokens_hash == stored.tokens_hash and made.with_gradients.gradients_from == "model"
    # A changed sum in the last place may swap two features of equal score, of some thousands.
    expected = stored.with_gradients.reconstruction
    assert made.with_gradients.reconstruction.fvu == pytest.approx(expected.fvu, rel=1e-4)
    assert made.with_gradients.loss.ce_spliced == pytest.approx(
        stored.with_gradients.loss.ce_spliced, abs=1e-4
    )
    nothing = evaluate(sae, bare, **QUIET)
    assert nothing.with_gradients is None
    why = "the store holds no gradients, and no language model was given"
    record = {"run": "R"} | nothing.to_json()
    assert record["with_gradients"] is None and record["undefined"]["with_gradients"] == why
    assert f"with gradients: not measured: {why}" in describe_evaluation(record)


@pytest.mark.parametrize(("tile", "batch_rows"), [(64, 3), (5000, 16)])
def test_batch_sizes_change_nothing_but_rounding_with_gradients(world, store, g_sae, tile, batch_rows):
    config = EvaluationConfig(tile=tile, batch_rows=batch_rows)
    usual = evaluate(g_sae(0.5), store, lm=world.lm, **QUIET).with_gradients
    other = evaluate(g_sae(0.5), store, lm=world.lm, config=config, **QUIET).with_gradients
    expected = dataclasses.astuple(usual.reconstruction)
    assert dataclasses.astuple(other.reconstruction) == pytest.approx(expected, rel=1e-12)
    assert dataclasses.astuple(other.loss) == pytest.approx(dataclasses.astuple(usual.loss), abs=1e-4)


def test_company_changes_nothing_and_each_gets_its_own_form(world, store, g_sae):
    saes = [plain(g_sae(1.0)), g_sae(0.5), g_sae(3.0)]
    alone = [evaluate(sae, store, lm=world.lm, **QUIET).to_json() for sae in saes]
    found = evaluate_together(saes, store, lm=world.lm, **QUIET)
    assert [one.to_json() for one in found] == alone
    assert alone[1]["with_gradients"]["fvu"] != alone[2]["with_gradients"]["fvu"]


def test_the_leak_is_said_in_the_record_and_on_the_screen(store, g_sae):
    record = {"run": "R"} | evaluate(g_sae(3.0), store, **QUIET).to_json()
    ranked = record["with_gradients"]
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert ranked["labels"] == "true next token"
    assert "the selection knows what comes next" in ranked["warning"]
    shown = describe_evaluation(record)
    assert f"(*) labels: true next token; {ranked['warning']}" in shown
    (fvu,) = [line for line in shown.splitlines() if "(FVU)" in line]
    assert fvu.split()[-2:] == [f"{record['fvu']:.4f}", f"{ranked['fvu']:.4f}"]
    (kl,) = [line for line in shown.splitlines() if "KL(clean" in line]
    assert kl.endswith("not defined: no language model was given")


def test_drawn_labels_are_the_same_draw_in_store_and_loss_and_do_not_leak(world, store, g_sae):
    drawn = dataclasses.replace(sources.saved_config(store.path), gradient_labels="sampled", gradient_seed=7)
    sampled = cache_activations(drawn, store.path.parent / "sampled", progress=False, lm=world.lm)
    assert (store.label_seed, sampled.label_seed) == (None, 7)
    n_rows = sampled.n_rows(HOOK, "heldout")
    chosen = choose_tokens(sampled, sampled.hook(HOOK), n_rows)
    maker = ModelGradients(world.lm, sampled, Places((HOOK,), (HOOK,)), chosen.sequence_rows, 3)
    stored = sampled.rows(HOOK, "heldout", 0, n_rows).gradients
    torch.testing.assert_close(maker.take(n_rows), stored, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(stored, store.rows(HOOK, "heldout", 0, n_rows).gradients, rtol=0.1, atol=1e-2)
    ranked = evaluate(g_sae(3.0), sampled, lm=world.lm, **QUIET).to_json()["with_gradients"]
    assert ranked["labels"] == "drawn from the model"
    assert "but not which token comes next" in ranked["warning"]
