"""Runs of every form, trained on a store and live, and evaluated on their own tokens, another store and a text."""

import dataclasses

import pytest
from run_helpers import SMALL, evaluate, text_of

from saelab import api
from saelab.activations.cache import cache_activations
from saelab.errors import UsageError
from saelab.evaluation import sources
from saelab.text.spec import TextSpec
from saelab.training.run import Run

FIRST, LAST = "model.layers.0.output", "model.layers.1.output"
LOSSES = ("ce_spliced", "ce_zero_ablation", "ce_mean_ablation", "kl")
FORMS = {
    "transcoder": ({"at": FIRST, "target_at": LAST}, [FIRST], [LAST]),
    "crosscoder": ({"at": (FIRST, LAST)}, [FIRST, LAST], [FIRST, LAST]),
}


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    config = dataclasses.replace(
        sources.saved_config(world.masked.path), model=world.lm.spec, at=(FIRST, LAST), gradients=True
    )
    folder = tmp_path_factory.mktemp("runs of forms") / "store"
    return cache_activations(config, folder, progress=False, lm=world.lm)


def train(source, recipe, out, **places):
    return api.train(source, recipe, out=out, width=32, recipe_options={"k": 4}, **places, **SMALL).path


@pytest.mark.parametrize("recipe", FORMS)
def test_a_run_is_evaluated_on_its_own_store_live_text_and_another_store(
    world, store, loads, tmp_path, recipe
):
    places, inputs, outputs = FORMS[recipe]
    run = train(store, recipe, tmp_path / "run", **places)
    text = TextSpec(source=text_of(world), heldout_share=0.5)
    source = api.live(world.lm, text, at=(FIRST, LAST), context=48, pool_rows=512)
    live = train(source, recipe, tmp_path / "live", **places)
    (own,), (again,) = evaluate([run]), evaluate([live])
    (given,), (read) = evaluate([live], store=store), evaluate([run, live], text=text_of(world))
    for record in (own, again, given, *read):
        assert (record["input_hooks"], record["output_hooks"]) == (inputs, outputs)
        assert record["undefined"] == {} and all(record[name] is not None for name in LOSSES)
        assert set(record.get("fvu_by_hook", ())) == set(outputs if len(outputs) > 1 else ())
    statistics = Run.open(live).activation_statistics
    assert read[0]["ce_zero_ablation"] == pytest.approx(read[1]["ce_zero_ablation"], abs=1e-6)
    assert read[0]["ce_mean_ablation"] != read[1]["ce_mean_ablation"], "each run has its own training mean"
    assert all(len(statistics(hook).mean) == 32 for hook in outputs)
    with pytest.raises(UsageError, match=rf"masked has no activations of {LAST}, which {run} needs"):
        evaluate([run], store=world.masked)


def test_runs_of_several_forms_get_what_each_gets_alone(store, loads, tmp_path):
    runs = [train(store, "topk", tmp_path / "topk", at=LAST)]
    runs += [train(store, recipe, tmp_path / recipe, **places) for recipe, (places, *_) in FORMS.items()]
    alone = [evaluate([run])[0] for run in runs]
    assert evaluate(runs) == alone and len({record["tokens_hash"] for record in alone}) == 1
    assert alone[0]["ce_zero_ablation"] == alone[1]["ce_zero_ablation"], "both give what is at LAST"
    assert len({record["ce_spliced"] for record in alone}) == 3


def test_a_run_that_ranks_by_gradients_has_both_forms_on_its_store_and_on_a_text(
    world, store, loads, tmp_path
):
    run = train(store, "gradient", tmp_path / "run", at=FIRST)
    (own,), (read,) = evaluate([run]), evaluate([run], text=text_of(world))
    assert own["with_gradients"]["gradients_from"] == "store"
    assert read["with_gradients"]["gradients_from"] == "model"
    for record in (own, read):
        assert record["with_gradients"]["undefined"] == record["undefined"] == {}
        assert record["with_gradients"]["fvu"] != record["fvu"]


def test_a_run_on_stores_of_several_models_is_one_line(store, tmp_path):
    run = Run.open(train(store, "topk", tmp_path / "run", at=LAST))
    several = dataclasses.replace(run, aligned_paths=(tmp_path / "other",))
    with sources.Shared() as shared, pytest.raises(UsageError, match="several models at once") as refused:
        sources.tokens_for(several, sources.TokenSource(), 100, shared)
    assert "\n" not in str(refused.value) and str(tmp_path / "other") in str(refused.value)
