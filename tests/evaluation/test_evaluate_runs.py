"""Runs and groups on their own store, another store, a text, another model: alone, and many at once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_helpers import HOOK, SMALL, evaluate, text_of

from saelab import api
from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.evaluation import runs as evaluation_runs
from saelab.evaluation import sources
from saelab.lm.load import load_model
from saelab.lm.spec import ModelSpec
from saelab.training.run import Run


def variant(world, folder, name):
    """Write a relative of the model: ``tuned`` in one weight, with another ``tokenizer``, or ``narrow``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    source, target = world.lm.spec.name, folder / name
    shutil.copytree(source, target)
    if name == "tokenizer":
        raw = json.loads((target / "tokenizer.json").read_text())
        raw["model"]["merges"].pop()
        (target / "tokenizer.json").write_text(json.dumps(raw))
    else:
        model = LlamaForCausalLM.from_pretrained(source)
    if name == "tuned":
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight[0, 0] += 0.5
        model.save_pretrained(target)
    if name == "narrow":
        LlamaForCausalLM(LlamaConfig(**model.config.to_dict() | {"hidden_size": 16})).save_pretrained(target)
    return target


def test_many_runs_get_what_each_gets_alone_and_models_and_stores_are_opened_once(
    trained, loads, monkeypatch
):
    paths = [
        trained / "group" / "topk-k4-f48-s0",
        trained / "alone",
        trained / "live",
        trained / "group" / "topk-k4-f32-s0",
    ]
    alone = [evaluate([path])[0] for path in paths]
    assert len({record["fvu"] for record in alone}) == 4
    loads.clear()
    opened = []
    real = Store.open.__func__

    def counted(cls, path):
        opened.append(path)
        return real(cls, path)

    monkeypatch.setattr(sources.Store, "open", classmethod(counted))
    assert evaluate(paths) == alone
    assert len(loads) == 1, "one model serves three sets of tokens"
    stores = [path for path in opened if path.name != "store"]
    assert len(stores) == len(set(stores)) == 2


def test_saes_that_do_not_fit_together_take_turns_with_the_same_result(trained, loads, monkeypatch):
    together = evaluate([trained / "group"])
    rounds = []
    real = evaluation_runs.evaluate_together

    def counted(saes, *arguments, **options):
        rounds.append(len(saes))
        return real(saes, *arguments, **options)

    monkeypatch.setattr(evaluation_runs, "evaluate_together", counted)
    assert evaluate([trained / "group"]) == together
    monkeypatch.setattr(evaluation_runs, "SAE_BYTES", 1)
    assert evaluate([trained / "group"]) == together
    assert rounds == [2, 1, 1]


def test_a_given_store_is_used_for_runs_of_any_store(trained, world, copy, loads):
    records = evaluate([trained / "group", trained / "alone", trained / "live"], store=world.masked)
    assert {record["store_identity"] for record in records} == {world.masked.identity}
    assert len({record["tokens_hash"] for record in records}) == 1
    assert len({record["ce_mean_ablation"] for record in records}) == 1, "one mean for all"
    run = copy("alone")
    with pytest.raises(UsageError, match="give --store or --text, not both"):
        evaluate([run], store=world.masked, text="stdlib")
    with pytest.raises(UsageError, match="give --store or --model, not both"):
        evaluate([run], store=world.masked, model="embedded")


def test_a_live_run_is_evaluated_on_the_heldout_documents_of_its_text(trained, world, tmp_path, loads):
    text = sources.TextSpec(source=text_of(world), heldout_share=0.5, only_heldout=True)
    config = replace(sources.saved_config(world.masked.path), text=text, tokens=10**6, dtype="bfloat16")
    store = sources.cache_activations(config, tmp_path / "store", progress=False, lm=world.lm)
    (live,) = evaluate([trained / "live"], tokens=10**6)
    (stored,) = evaluate([trained / "live"], tokens=10**6, store=store)
    mean = Run.open(trained / "live").activation_statistics().mean
    assert not torch.equal(mean, store.statistics(HOOK).mean), "held-out tokens have another mean"
    assert live["ce_mean_ablation"] != stored["ce_mean_ablation"]
    differing = {name for name in live if live[name] != stored[name]}
    assert differing == {"ce_mean_ablation", "ce_recovered_mean", "source"}


def test_the_own_text_is_never_evaluated_on_training_documents(trained, world, loads):
    own, asked = (evaluate([trained / "live"], text=text)[0] for text in (None, text_of(world)))
    (member,) = evaluate([trained / "group" / "topk-k4-f32-s0"], text=text_of(world))
    assert asked["tokens_hash"] == own["tokens_hash"] == member["tokens_hash"]
    wider = sources.TextSpec(source=text_of(world), heldout_share=0.9)
    (most,) = evaluate([trained / "live"], text=wider)
    assert most["tokens_hash"] == own["tokens_hash"]


def test_another_text_is_read_whole_and_shared(trained, world, tmp_path, loads, monkeypatch):
    lines = Path(text_of(world)).read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(lines[:9]) + "\n")
    cached = []
    real = sources.cache_activations

    def counted(config, *arguments, **options):
        cached.append(config)
        return real(config, *arguments, **options)

    monkeypatch.setattr(sources, "cache_activations", counted)
    records = evaluate([trained / "group"], text=str(tmp_path / "other.jsonl"), tokens=10**6)
    assert len({record["tokens_hash"] for record in records}) == 1 and records[0]["n_tokens"] > 200
    assert records[0]["ce_mean_ablation"] == records[1]["ce_mean_ablation"] is not None
    assert len(cached) == len(loads) == 1


def test_a_text_of_conversations_is_packed_as_such_whatever_the_run_was_trained_on(
    trained,
):
    cached = []
    run = Run.open(trained / "alone")
    for column, source in (("messages", "chat.jsonl"), ("text", "plain.jsonl")):
        asked = sources.TokenSource(text=sources.TextSpec(source=source, column=column, heldout_share=1.0))
        with sources.Shared() as shared:
            cached.append(sources.tokens_for(run, asked, 300, shared).harvest)
    chat, plain = cached
    assert (chat.packing, plain.packing) == ("conversation", "packed")
    assert chat.text.only_heldout and chat.context == 48 and not chat.mask_bos


def test_a_fine_tune_is_refused_and_evaluated_where_it_is_allowed(trained, world, tmp_path, loads):
    tuned = str(variant(world, tmp_path, "tuned"))
    with pytest.raises(UsageError, match=r"here is model tuned .* --allow-model-mismatch"):
        evaluate([trained / "group"], model=tuned)
    own = evaluate([trained / "group"])
    records = evaluate([trained / "group"], model=tuned, allow_model_mismatch=True)
    for record in records:
        assert record["model_mismatch"]["sae_model"] == "model"
        assert record["model_mismatch"]["sae_model_identity"] == world.lm.identity.hash
        assert record["model_mismatch"]["model"] == "tuned"
        assert (
            record["model_mismatch"]["model_identity"] == record["model_identity"] != world.lm.identity.hash
        )
        assert "is used on model tuned" in record["warnings"][-1]
        assert record["ce_clean"] is not None and record["fvu"] not in [other["fvu"] for other in own]


def test_a_store_of_a_fine_tune_is_treated_alike(trained, world, tmp_path, loads):
    tuned = load_model(ModelSpec(name=str(variant(world, tmp_path, "tuned")), device="cpu"))
    config = replace(sources.saved_config(world.masked.path), model=tuned.spec, tokens=400, at=(HOOK,))
    store = sources.cache_activations(config, tmp_path / "store", progress=False, lm=tuned)
    with pytest.raises(UsageError, match="--allow-model-mismatch"):
        evaluate([trained / "alone"], store=store)
    (record,) = evaluate([trained / "alone"], store=store, allow_model_mismatch=True)
    assert record["model_mismatch"]["model"] == "tuned"


@pytest.mark.parametrize(
    ("name", "words"),
    [("tokenizer", "its tokenizer is .*, here it is"), ("narrow", r"its width at .* is 32, here it is 16")],
)
def test_a_model_that_does_not_fit_is_refused_even_where_a_mismatch_is_allowed(
    trained, world, tmp_path, loads, name, words
):
    model = str(variant(world, tmp_path, name))
    with pytest.raises(UsageError, match=words) as refused:
        evaluate([trained / "group"], model=model, allow_model_mismatch=True)
    assert "--allow-model-mismatch" not in str(refused.value)


def test_a_store_that_has_gone_or_changed_is_named(trained, world, copy, tmp_path, loads):
    run = tmp_path / "somewhere" / "else"
    shutil.copytree(copy("alone"), run)
    with pytest.raises(UsageError, match=r"the store of .* is not at .* any more; give it with --store"):
        evaluate([run])
    (record,) = evaluate([run], store=world.unmasked)
    assert record["n_tokens"] > 100


def test_activations_without_a_model_have_no_text(tmp_path):
    store = Store.from_tensors(tmp_path / "store", torch.randn(2_000, 6), dtype="float32")
    run = api.train(store, out=tmp_path / "run", width=12, recipe_options={"k": 2}, **SMALL)
    (record,) = evaluate([run])
    assert record["fvu"] is not None and record["undefined"]["kl"] == "no language model was given"
    with pytest.raises(UsageError, match="activations without a model: a text cannot be evaluated"):
        evaluate([run], text="stdlib")
