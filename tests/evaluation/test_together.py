"""Several SAEs on one pass: each gets the bits that it gets alone, N of them cost N + 3 passes, and nothing is NaN."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import saelab.evaluation.loss_recovered
import saelab.evaluation.splice
from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.evaluation.evaluate import evaluate, evaluate_together
from saelab.evaluation.spec import EvaluationConfig

HOOK = "model.layers.0.output"
FEW = EvaluationConfig(tokens=500)
FUNCTIONS = (lambda x: x, lambda x: 0.7 * x, torch.zeros_like, lambda x: x.roll(1, 1))


@pytest.fixture
def saes(world, known_sae):
    return [known_sae(function, world.masked) for function in FUNCTIONS]


def records(evaluations):
    return [evaluation.to_json() for evaluation in evaluations]


def test_each_sae_gets_the_same_bits_as_alone_in_any_company_and_order(world, saes):
    alone = records(evaluate(sae, world.masked, HOOK, world.lm, config=FEW, progress=False) for sae in saes)
    assert len({record["fvu"] for record in alone}) == len({record["kl"] for record in alone}) == len(saes)
    for order in ([0, 1, 2, 3], [3, 1], [2, 0, 1]):
        chosen = [saes[index] for index in order]
        found = evaluate_together(chosen, world.masked, HOOK, world.lm, config=FEW, progress=False)
        assert records(found) == [alone[index] for index in order]
        features = evaluate(chosen[0], world.masked, HOOK, config=FEW, progress=False).features
        assert torch.equal(found[0].features.total, features.total)


def test_n_saes_cost_n_and_three_passes(world, saes, monkeypatch):
    passes = []
    forward = saelab.evaluation.splice.final_hidden

    def counted(lm, ids):
        passes.append(ids)
        return forward(lm, ids)

    monkeypatch.setattr(saelab.evaluation.splice, "final_hidden", counted)
    config = EvaluationConfig(tokens=300, batch_rows=100)
    evaluate_together(saes, world.masked, HOOK, world.lm, config=config, progress=False)
    assert len(passes) == len(saes) + 3
    assert all(torch.equal(ids, passes[0]) for ids in passes)


def test_the_activations_are_read_once_for_all(world, saes, monkeypatch):
    read = []
    rows = Store.rows

    def counted(self, hook, split, start, stop):
        read.append((split, start, stop))
        return rows(self, hook, split, start, stop)

    monkeypatch.setattr(Store, "rows", counted)
    evaluate_together(saes, world.masked, HOOK, progress=False)
    assert len(read) == len(set(read)) > 1


@pytest.mark.parametrize(("tile", "batch_rows"), [(64, 3), (5000, 16)])
def test_company_and_batch_sizes_change_nothing_but_rounding(world, saes, tile, batch_rows):
    usual = evaluate_together(saes, world.masked, HOOK, world.lm, config=FEW, progress=False)
    config = EvaluationConfig(tokens=FEW.tokens, tile=tile, batch_rows=batch_rows)
    other = evaluate_together(saes, world.masked, HOOK, world.lm, config=config, progress=False)
    for one, two in zip(usual, other, strict=True):
        assert dataclasses.astuple(two.reconstruction) == pytest.approx(
            dataclasses.astuple(one.reconstruction), rel=1e-12
        )
        assert dataclasses.astuple(two.loss) == pytest.approx(dataclasses.astuple(one.loss), abs=2e-6)


def test_a_broken_sae_does_not_touch_the_others(world, known_sae, saes):
    broken = known_sae(lambda x: x * torch.nan, world.masked)
    good, bad = records(evaluate_together([saes[1], broken], world.masked, HOOK, world.lm, progress=False))
    assert good == evaluate(saes[1], world.masked, HOOK, world.lm, progress=False).to_json()
    assert bad["fvu"] is None and bad["ce_spliced"] is None and bad["ce_clean"] == good["ce_clean"]
    assert bad["undefined"]["kl"] == "the loss is not finite"


def test_dead_features_constant_input_and_no_tokens_are_said_and_never_nan(tmp_path, known_sae):
    def together(name, x, share):
        store = Store.from_tensors(tmp_path / name, x, heldout_share=share, dtype="float32")
        saes = [known_sae(function, store, 6, "custom") for function in (torch.zeros_like, torch.ones_like)]
        found = records(evaluate_together(saes, store, progress=False))
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        for record in found:
            nones = {name for name, value in record.items() if value is None} - {
                "outlier_ratio",
                "model_mismatch",
            }
            assert nones == set(record["undefined"]), "what is not defined says why"
        return found

    dead, constant = together("constant", torch.ones(2_000, 6), 0.5)
    assert dead["dead_fraction"] == 1.0 and dead["l0"] == 0.0 and dead["cosine"] == 0.0
    assert constant["dead_fraction"] == 0.5 and constant["mse"] == 0.0
    assert dead["fvu"] is None and dead["undefined"]["fvu"] == "the evaluated activations are all equal"
    for record in together("zeros", torch.zeros(2_000, 6), 0.5):
        assert record["undefined"]["cosine"] == "every evaluated activation is zero"
        assert record["outlier_ratio"] is None
    for record in together("training", torch.randn(100, 6), 0.0):
        assert record["n_tokens"] == 0
        assert set(record["undefined"].values()) == {"no held-out tokens", "no language model was given"}


def test_no_predictions_leave_every_loss_undefined_for_every_sae(world, saes, monkeypatch):
    nothing = np.zeros(len(world.masked.tokens), dtype=bool)
    monkeypatch.setattr(saelab.evaluation.loss_recovered, "predictions_that_count", lambda _: nothing)
    for record in records(evaluate_together(saes, world.masked, HOOK, world.lm, progress=False)):
        assert record["n_predictions"] == 0 and record["ce_clean"] is None and record["kl"] is None
        assert record["undefined"]["ce_recovered_zero"] == "no prediction counts in the evaluated tokens"


def test_one_sae_that_does_not_belong_refuses_all_before_any_work(world, saes, monkeypatch):
    monkeypatch.setattr(Store, "rows", None)
    saes[2].config = dataclasses.replace(saes[2].config, model_identity="another")
    with pytest.raises(UsageError, match="give the SAE's own model"):
        evaluate_together(saes, world.masked, HOOK, progress=False)


def test_an_allowed_mismatch_is_recorded_with_the_one_it_belongs_to(world, known_sae, saes):
    tokenizer = world.masked.tokenizer_hash
    own = dataclasses.replace(saes[0].config, tokenizer_hash=tokenizer)
    saes[0].config = own
    saes[1].config = dataclasses.replace(own, model_identity="another", model_name="base")
    first, second = records(
        evaluate_together(saes[:2], world.masked, HOOK, progress=False, allow_model_mismatch=True)
    )
    assert first["model_mismatch"] is None and first["warnings"] == []
    assert second["model_mismatch"] == {
        "sae_model": "base",
        "sae_model_identity": "another",
        "model": "model",
        "model_identity": world.lm.identity.hash,
    }
    assert second["warnings"] == [
        f"the SAE was trained on model base (another) and is used on model model ({world.lm.identity.hash}), "
        "another model"
    ]
