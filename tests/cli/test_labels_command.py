"""saelab labels: what a user sees."""

import json
import shutil

import pytest


@pytest.fixture
def run_folder(store_and_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(store_and_run[1], run)
    return run


def test_in_and_out_again(saelab, saelab_json, run_folder, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("feature,label\n0,zero\n1,one\n1,one\n")
    found = saelab_json("labels", "import", run_folder, table)
    assert (found["added"], found["unchanged"], found["refused"]) == (2, 1, 0)
    assert found["folder"] == str(run_folder / "labels")
    assert saelab("labels", "import", run_folder, table)[1].endswith(
        "0 labels added, 3 unchanged, 0 lines refused\n"
    )
    out = tmp_path / "labels.jsonl"
    assert saelab_json("labels", "export", run_folder, out)["n_labels"] == 2
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == ["zero", "one"]
    assert saelab_json("labels", "import", run_folder, out)["unchanged"] == 2
    code, _, err = saelab("labels", "export", run_folder, tmp_path / "np.jsonl", "--to", "neuronpedia")
    assert code == 2 and "--model-id" in err
    names = ["--model-id", "gpt2-small", "--source-id", "6-mine"]
    code, text, _ = saelab(
        "labels", "export", run_folder, tmp_path / "np.jsonl", "--to", "neuronpedia", *names
    )
    assert code == 0 and text.endswith("np.jsonl: 2 labels\n")
    theirs = json.loads((tmp_path / "np.jsonl").read_text().splitlines()[0]) | {"notes": None}
    (tmp_path / "theirs.jsonl").write_text(json.dumps(theirs))
    code, _, err = saelab("labels", "import", run_folder, tmp_path / "theirs.jsonl")
    assert code == 2 and "--allow-unknown-sae" in err and len(err.strip().splitlines()) == 1
    arguments = ["labels", "import", run_folder, tmp_path / "theirs.jsonl", "--allow-unknown-sae"]
    assert saelab_json(*arguments)["added"] == 1  # written by another author
    assert saelab("verify", run_folder)[0] == 0


def test_refusals(saelab, saelab_json, run_folder, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("feature,label\n0,zero\n" + "999999,far\n" * 22)
    found = saelab_json("labels", "import", run_folder, table, code=1)
    assert (found["added"], found["refused"]) == (1, 22) and len(found["reasons"]) == 20
    code, text, _ = saelab("labels", "import", run_folder, table)
    assert code == 1 and "line 3: there is no feature 999,999" in text and text.endswith("and 2 more\n")
    assert saelab("labels", "import", tmp_path / "none", table)[0] == 2
    code, _, err = saelab("labels", "list", run_folder, table)
    assert code == 2 and "import" in err
