"""`export` and `import` as a user starts them, and imported runs in every command that takes runs."""

import json

import pytest
import torch

import saelab as api
from saelab.evaluation.places import Places, heldout_mean
from saelab.sae.files import load_feature_statistics, load_sae_config
from saelab.storage.files import read_json
from saelab.training.run import Run

TEXT = ("--text", "stdlib", "--tokens", "2k")
SAME = ("l0", "fvu", "mse", "cosine", "ce_clean", "ce_spliced", "ce_zero_ablation", "kl", "dead_fraction")


@pytest.fixture(scope="session")
def exported(store_and_run, tmp_path_factory):
    """The run in SAELens' format."""
    out = tmp_path_factory.mktemp("exported") / "saelens"
    made = api.export(store_and_run[1], to="saelens", out=out)
    assert made.architecture == "topk"
    return out


@pytest.fixture(scope="session")
def imported(exported, tmp_path_factory):
    """And back, bound to its model."""
    out = tmp_path_factory.mktemp("imported") / "run"
    return api.import_sae(exported, out=out, model="embedded").path


def test_an_sae_that_went_out_and_in_is_evaluated_as_before(saelab_json, store_and_run, imported, tmp_path):
    before = saelab_json(
        "evaluate", store_and_run[1], *TEXT, "--out", tmp_path
    )  # the run is other tests' too
    after = saelab_json("evaluate", imported, *TEXT)
    for name in SAME:
        assert after[name] == pytest.approx(before[name], rel=1e-5), name
    assert any("what it was trained on is not known" in warning for warning in after["warnings"])
    assert (imported / "evaluations" / "text-stdlib.json").exists()


def test_mean_ablation_of_an_imported_sae_takes_the_mean_of_the_evaluated_tokens(store_and_run):
    store, run = api.open_store(store_and_run[0]), Run.open(store_and_run[1])
    places = Places.of_sae(load_sae_config(run.path / "sae"))
    x = store.rows(places.inputs[0], "heldout", 0, store.n_rows(places.inputs[0], "heldout")).x
    torch.testing.assert_close(heldout_mean(store, places), x.double().mean(0))


def test_an_imported_run_on_the_store_of_another(saelab_json, store_and_run, imported, tmp_path):
    store, run = store_and_run
    found = [
        saelab_json("evaluate", one, "--store", store, "--name", "a", "--out", tmp_path)
        for one in (run, imported)
    ]
    assert found[1]["fvu"] == pytest.approx(found[0]["fvu"], rel=1e-6)


def test_an_imported_run_is_compared_with_a_trained_one(saelab_json, store_and_run, imported, tmp_path):
    found = saelab_json("compare", store_and_run[1], imported, *TEXT, "--out", tmp_path / "compared")
    rows = found["runs"]
    assert [row["recipe"] for row in rows] == ["topk", "saelens topk"]
    assert rows[0]["seed"] == 0 and rows[1]["seed"] is None
    assert rows[1]["fvu"] == pytest.approx(rows[0]["fvu"], rel=1e-5)


def test_an_imported_run_is_listed_and_verified(saelab, saelab_json, imported, exported):
    code, out, _ = saelab("ls", imported.parent)
    assert code == 0 and "imported (saelens topk)" in out and str(exported) in out
    assert saelab_json("verify", imported)["problems"] == []
    (entry,) = saelab_json("ls", imported.parent)["entries"]
    assert entry["kind"] == "run"


def test_what_an_imported_run_cannot_do_is_said(saelab, imported, store_and_run):
    code, _, err = saelab("evaluate", imported)
    assert code == 2 and "give --text" in err
    code, _, err = saelab(
        "train", store_and_run[0], "--k", "8", "--width", "x2", "--tokens", "20k", "--out", imported
    )
    assert code == 2 and "imported SAE" in err


def test_without_a_model_it_is_used_on_one_only_where_that_is_allowed(
    saelab, saelab_json, exported, tmp_path
):
    data = saelab_json("import", exported, "--out", tmp_path / "run")
    assert data["model_identity"] == "" and any("no model was named" in note for note in data["notes"])
    code, _, err = saelab("evaluate", tmp_path / "run", *TEXT)
    assert code == 2 and "import it again with --model" in err
    code, _, err = saelab("evaluate", tmp_path / "run", *TEXT, "--model", "embedded")
    assert code == 2 and "--allow-model-mismatch" in err
    found = saelab_json("evaluate", tmp_path / "run", *TEXT, "--model", "embedded", "--allow-model-mismatch")
    assert any("holds no hash" in warning for warning in found["warnings"])


def test_an_import_is_finished_once_and_never_overwritten(saelab, saelab_json, exported, tmp_path):
    command = ("import", exported, "--out", tmp_path / "run")
    saelab_json(*command)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    saelab_json(*command)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items() if path.name != ".lock")
    code, _, err = saelab(*command, "--at", "blocks.0.hook_resid_post")
    assert code == 2 and "holds something else" in err
    (tmp_path / "run" / "manifest.json").unlink()  # as after a kill
    saelab_json(*command)
    assert Run.open(tmp_path / "run").imported is not None


def test_where_it_came_from_is_kept(imported, exported):
    found = read_json(imported / "config.json")["imported"]
    assert found["format"] == "saelens" and found["source"] == str(exported)
    assert set(found["files"]) == {"cfg.json", "sae_weights.safetensors"}
    assert found["hook_given"] == "model.layers.1.output" and found["model"] == "embedded"
    assert not (imported / "sae" / "feature_stats.safetensors").exists()


def test_an_imported_run_is_indexed_and_reported(saelab, saelab_json, store_and_run, imported, tmp_path):
    code, _, err = saelab("index", imported, "--tokens", "2k")
    assert code == 2 and "give --text" in err
    found = saelab_json(
        "index", imported, "--text", "stdlib", "--tokens", "2k", "--out", tmp_path / "of-text"
    )
    assert found["n_features"] == 512 and found["n_alive"] > 100
    again = saelab_json(
        "index", imported, "--store", store_and_run[0], "--tokens", "2k", "--out", tmp_path / "a"
    )
    trained = saelab_json(
        *("index", store_and_run[1], "--store", store_and_run[0], "--tokens", "2k", "--out", tmp_path / "b")
    )
    assert again["n_alive"] == trained["n_alive"]
    rows = saelab_json("encode", imported, "stdlib", "--tokens", "300", "--out", tmp_path / "codes.parquet")[
        "rows"
    ]
    assert rows == 300
    page = ("--overlay", tmp_path / "of-text", "--out", tmp_path / "page.html")
    code, _, err = saelab("report", imported, *page)
    assert code == 0, err
    assert "imported from" in (tmp_path / "page.html").read_text()


def test_training_starts_from_an_imported_sae(saelab_json, store_and_run, imported, tmp_path):
    command = (
        "train",
        store_and_run[0],
        "--k",
        "8",
        "--tokens",
        "512",
        "--batch",
        "512",
        "--init-from",
        imported,
    )
    saelab_json(*command, "--lr", "1e-9", "--out", tmp_path / "run")
    before, after = (api.load(place) for place in (imported, tmp_path / "run"))
    torch.testing.assert_close(after.W_dec, before.W_dec, atol=1e-5, rtol=1e-5)


def test_features_are_measured_on_a_text_where_one_is_named(saelab, store_and_run, exported, tmp_path):
    out = tmp_path / "run"
    run = api.import_sae(exported, out=out, model="embedded", text="stdlib", tokens="2k", quiet=True)
    found = load_feature_statistics(out / "sae")
    store = api.cache(
        "embedded", "stdlib", at="model.layers.1.output", tokens="2k", out=tmp_path / "store", quiet=True
    )
    hook = "model.layers.1.output"
    rows = [store.rows(hook, split, 0, store.n_rows(hook, split)).x for split in ("train", "heldout")]
    features = run.sae().encode(torch.cat(rows)).dense()
    assert found.n_tokens == len(features)
    torch.testing.assert_close(found.density, (features > 0).float().mean(0))
    torch.testing.assert_close(found.max_active, features.amax(0), rtol=1e-5, atol=1e-5)
    assert run.imported.measured_on == "stdlib" and run.imported.measured_tokens == 2000
    code, _, err = saelab("import", exported, "--out", tmp_path / "b", "--text", "stdlib")
    assert code == 2 and "--model" in err


def test_a_place_or_a_width_that_the_model_has_not_is_refused(saelab, exported, tmp_path):
    code, _, err = saelab(
        "import", exported, "--out", tmp_path / "a", "--model", "embedded", "--at", "blocks.9.hook_z"
    )
    assert code == 2 and "no hookpoint" in err
    code, _, err = saelab(
        *(
            "import",
            exported,
            "--out",
            tmp_path / "b",
            "--model",
            "embedded",
            "--at",
            "blocks.1.mlp.hook_post",
        )
    )
    assert code == 2 and "has width 256" in err
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_export_refuses_what_the_other_tool_cannot_hold(saelab, store_and_run, exported, tmp_path):
    code, _, err = saelab("export", store_and_run[1], exported, "--to", "saelens")
    assert code == 2 and "choose a new folder" in err
    code, _, err = saelab("export", store_and_run[1], tmp_path / "out", "--to", "mystery")
    assert code == 2 and "known are saelens, sparsify, dictionary-learning" in err


def test_load_takes_anything(store_and_run, imported, exported):
    x = torch.randn(4, 256)
    of_run = api.load(store_and_run[1])(x)
    for place in (imported, imported / "sae", exported, exported / "sae_weights.safetensors"):
        torch.testing.assert_close(api.load(place)(x), of_run)
    assert (
        json.loads((exported / "cfg.json").read_text())["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    )
