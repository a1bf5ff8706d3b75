import json
import shutil

import pytest

from saelab.storage.manifest import read_manifest


@pytest.fixture(scope="module")
def indexed(store_and_run, tmp_path_factory):
    """A copy of the run with an index of 4,000 tokens."""
    from saelab.cli.main import run

    folder = tmp_path_factory.mktemp("indexed")
    shutil.copytree(store_and_run[1], folder / "run")
    command = ["index", str(folder / "run"), "--store", str(store_and_run[0]), "--tokens", "4k"]
    assert run([*command, "--parts", "neighbors"]) == 0
    return folder / "run"


def test_an_index_is_described(saelab, saelab_json, store_and_run, indexed):
    found = saelab_json(
        "index", indexed, "--store", store_and_run[0], "--tokens", "4k", "--parts", "neighbors"
    )
    assert found["index"] == str(indexed / "indexes" / "main")
    assert found["n_features"] == 512 and 0 < found["n_alive"] <= 512
    assert 3_700 < found["n_tokens"] <= 4_000
    assert found["parts"] == ["neighbors"] and found["has_codes"] is True
    content = read_manifest(indexed / "indexes" / "main", "index").content
    assert content["sae"]["d_sae"] == 512
    assert content["corpus"]["n_kept"] == found["n_tokens"]
    assert "blocks.1.hook_resid_post" in content["source"]
    code, out, _ = saelab("index", indexed, "--store", store_and_run[0], "--tokens", "4k")
    assert code == 0 and "512 features" in out and "coactivation" in out


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
