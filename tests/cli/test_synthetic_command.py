"""`saelab synthetic`: one JSON object, a table, and one line for what cannot work."""

import json

import pytest

from saelab.cli.synthetic import _COLUMNS

SMALL = ["--n-features", "16", "--d-in", "12", "--mean-active", "1.5", "--rows", "4k", "--tokens", "4k"]
SMALL += ["--batch", "128", "--evaluation-rows", "500"]


@pytest.mark.parametrize("data", ["bernoulli", "power-law", "correlated", "hierarchical"])
def test_a_single_sae_stands_at_the_top_level(saelab_json, tmp_path, data):
    found = saelab_json("synthetic", "--data", data, *SMALL, "--out", tmp_path / "out")
    assert found["planted"]["data"] == data and found["planted"]["n_features"] == 16
    assert found["recipe"] == {"name": "topk", "k": 2}, "one more than are on"
    assert found["run"] == str(tmp_path / "out" / "runs" / "topk-k2-f32-s0")
    assert 0 <= found["one_to_one_90"] <= found["frr_90"] <= found["frr_80"] <= 1
    assert found["n_tokens"] == 500 and 0 < found["l0"] <= 2
    assert found["consistency"] == [] and found["parked"] == {}
    kept = json.loads((tmp_path / "out" / "recovery.json").read_text())
    assert kept["frr_80"] == found["frr_80"] and kept["run"] == "topk-k2-f32-s0"


def test_the_default_k_is_one_more_than_features_are_on_whatever_the_rounding(saelab_json, tmp_path):
    found = saelab_json(
        "synthetic", "--data", "power-law", *SMALL[6:], "--width", "24", "--out", tmp_path / "out"
    )
    assert found["planted"]["mean_active"] == 8.0 and found["recipe"]["k"] == 9


def test_several_stand_under_runs_and_new_values_are_added(saelab, saelab_json, tmp_path):
    gba = ["synthetic", "--data", "gba", "--n-features", "16", "--d-in", "12", "--active", "2", "4"]
    gba += ["--rows", "4k", "--tokens", "4k", "--batch", "128", "--evaluation-rows", "500"]
    gba += ["--normalisation", "none", "--out", tmp_path / "out"]
    found = saelab_json(*gba, "--seed", "0", "1", "--width", "24", "x3", "--set", "topk.k=3")
    assert len(found["runs"]) == 4 and {one["recipe"]["k"] for one in found["runs"]} == {3}
    assert sorted(len(alike["runs"]) for alike in found["consistency"]) == [2, 2]
    code, out, _ = saelab(*gba, "--seed", "2", "--width", "24", "--set", "topk.k=3")
    lines = out.splitlines()
    assert code == 0 and "data gba" in lines[0] and "active [2, 4]" in lines[0]
    assert lines[1].split() == [word for _, label, _ in _COLUMNS for word in label.split()]
    names = [line.split()[0] for line in lines[2:7]]
    assert sorted(names) == [
        f"topk-k3-f{width}-s{seed}" for width, seed in ((24, 0), (24, 1), (24, 2), (36, 0), (36, 1))
    ]
    assert lines[7].startswith("  3 seeds (topk-k3-f24-s0, topk-k3-f24-s1, topk-k3-f24-s2): ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "gba", "--noise", "0.1"], "--noise: the data gba have no such option"),
        (["--data", "zipf"], "zipf"),
        (["--mean-active", "500"], "mean_active is 500"),
        (["--arch", "none"], "--arch none is unknown"),
        (["--set", "topk.q=3"], "unknown fields: q"),
        (["--k", "3", "--set", "topk.k=4"], "k is given twice"),
    ],
)
def test_wrong_options_are_one_line(saelab, tmp_path, options, words):
    code, out, err = saelab("synthetic", *SMALL[6:], "--out", tmp_path / "out", *options)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert err.startswith("saelab synthetic: ") and words in err
