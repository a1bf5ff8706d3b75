import json
import shutil

import pytest


@pytest.fixture(scope="module")
def indexed(store_and_run, tmp_path_factory):
    from saelab.cli.main import run

    folder = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(store_and_run[1], folder, ignore=lambda *_: ["indexes", "evaluations"])
    store = ["--store", str(store_and_run[0])]
    assert run(["index", str(folder), *store, "--tokens", "1k", "--parts", "neighbors"]) == 0
    return folder


def test_an_index_is_exported(saelab_json, indexed, tmp_path):
    found = saelab_json("export", indexed, tmp_path / "out", "--to", "neuronpedia", "--sae-set", "mine")
    assert found["architecture"] == "feature index"
    source = json.loads((tmp_path / "out").rglob("source.jsonl").__next__().read_text())
    assert source["setName"].endswith("mine") or source["id"].endswith("mine")
    dashboards = saelab_json("export", indexed, tmp_path / "boards", "--to", "saedashboard")
    assert any("batch-0" in file for file in dashboards["files"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "nothing"], "known are saelens, sparsify, dictionary-learning, saedashboard, neuronpedia"),
        (["--to", "saedashboard", "--index", "other"], "other"),
        (["--to", "neuronpedia", "--sae-set", "a/b"], "sae_set"),
    ],
)
def test_what_cannot_be_exported_is_one_line(saelab, indexed, tmp_path, arguments, message):
    code, _, err = saelab("export", indexed, tmp_path / "out", *arguments)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
