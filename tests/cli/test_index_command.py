import json
import re
import shutil
from pathlib import Path

import pytest

import saelab as saelab_package
from saelab.storage.manifest import read_manifest

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture(scope="module")
def indexed(store_and_run, tmp_path_factory):
    """A copy of the run with an index of 4,000 tokens."""
    from saelab.cli.main import run

    folder = tmp_path_factory.mktemp("indexed")
    shutil.copytree(store_and_run[1], folder / "run")
    command = ["index", str(folder / "run"), "--store", str(store_and_run[0]), "--tokens", "4k"]
    assert run(command) == 0
    return folder / "run"


def test_an_index_is_described(saelab, saelab_json, store_and_run, indexed):
    found = saelab_json(
        "index", indexed, "--store", store_and_run[0], "--tokens", "4k", "--parts", "neighbors"
    )
    assert found["index"] == str(indexed / "indexes" / "main")
    assert found["n_features"] == 512 and 0 < found["n_alive"] <= 512
    assert 3_700 < found["n_tokens"] <= 4_000
    assert found["parts"] == ["coactivation", "neighbors"] and found["has_codes"] is True
    content = read_manifest(indexed / "indexes" / "main", "index").content
    assert content["sae"]["d_sae"] == 512
    assert content["corpus"]["n_kept"] == found["n_tokens"]
    assert "blocks.1.hook_resid_post" in content["source"]
    code, out, _ = saelab(
        "index", indexed, "--store", store_and_run[0], "--tokens", "4k", "--parts", "neighbors"
    )
    assert code == 0 and "512 features" in out and "coactivation" in out  # what is there stays


def test_the_readme_reads_an_index(indexed, tmp_path, monkeypatch):
    section = README.split("## Features")[1].split("## What the numbers mean")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    (tmp_path / "runs").mkdir()
    shutil.copytree(indexed, tmp_path / "runs" / "topk")
    monkeypatch.chdir(tmp_path)
    found = {"saelab": saelab_package}
    exec(compile(code, "README.md", "exec"), found)
    assert found["index"].d_sae == 512
    assert all(row.density >= 1e-3 for row in found["page"].rows)


def test_parts_are_added(saelab_json, store_and_run, indexed):
    found = saelab_json("index", "add", indexed, "near-miss", "--store", store_and_run[0])
    assert "near-miss" in found["parts"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "RUN", "--seed", "1"], "made otherwise"),
        (["index", "RUN", "--name", "../x"], "cannot name"),
        (["index", "RUN", "--column", "body"], "go with --text"),
        (["index", "RUN", "--top", "0"], "top must be from 1"),
        (["index", "add", "RUN", "umap"], "'umap' is no part"),
        (["index", "add", "RUN"], "name at least one part"),
        (["index", "add", "RUN", "neighbors", "--name", "none"], "there is no index"),
        (["index", "nowhere"], "does not exist"),
    ],
)
def test_wrong_usage_is_one_line(saelab, store_and_run, indexed, arguments, message):
    store = [] if "--column" in arguments else ["--store", str(store_and_run[0])]
    code, _, err = saelab(*[str(indexed) if one == "RUN" else one for one in arguments], *store)
    assert code == 2
    assert message in err and len(err.strip().splitlines()) == 1


def test_ls_and_verify_know_an_index(saelab, saelab_json, indexed):
    code, _, err = saelab("verify", indexed)
    assert code == 0, err
    listed = saelab_json("ls", indexed)
    assert json.dumps(listed)
    (indexed / "indexes" / "main" / "tokens.bin").write_bytes(b"x")
    code, out, err = saelab("verify", indexed)
    assert code == 1 and "tokens.bin" in out + err
