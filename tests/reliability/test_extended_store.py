"""A run whose store was extended since: it is said, nothing is evaluated on other tokens unasked."""

from reliability_helpers import HOOK


def test_a_run_knows_that_its_store_was_extended(inputs, saelab, tmp_path):
    cache = [
        "cache",
        "embedded",
        inputs / "text.jsonl",
        "--at",
        HOOK,
        "--context",
        32,
        "--heldout-share",
        0.3,
    ]
    cache += ["--out", tmp_path / "store"]
    train = ["train", tmp_path / "store", "--k", 2, "--width", 8, "--tokens", 640, "--batch", 64]
    assert saelab(*cache, "--tokens", 400)[0] == 0
    assert saelab(*train, "--out", tmp_path / "run")[0] == 0
    assert saelab(*cache, "--tokens", 800)[0] == 0
    code, _, err = saelab("evaluate", tmp_path / "run", "--tokens", 100)
    assert code == 2
    assert f"{tmp_path / 'store'} was extended since {tmp_path / 'run'} was trained on it" in err
    assert "--store" in err
    assert saelab("evaluate", tmp_path / "run", "--tokens", 100, "--store", tmp_path / "store")[0] == 0
    code, _, err = saelab(*train, "--out", tmp_path / "run")
    assert code == 2
    assert "was trained on the store before it was extended; choose another folder" in err
    code, _, err = saelab(*cache, "--tokens", 300)
    assert code == 2 and "was made with 800 tokens and cannot shrink to 300" in err
