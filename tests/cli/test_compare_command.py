"""`saelab compare`: what it prints, what it writes, and what it refuses."""

import json

import pytest

from saelab import api
from saelab.training.grid import Grid


@pytest.fixture(scope="module")
def group(store_and_run, tmp_path_factory):
    """A group of three, of which one is not finished."""
    folder = tmp_path_factory.mktemp("compare") / "group"
    grid = Grid(widths=(32, 48, 64), recipe_options={"topk": {"k": 4}})
    api.train_grid(store_and_run[0], grid, tokens=512, batch=128, out=folder, quiet=True)
    (folder / "topk-k4-f64-s0" / "manifest.json").unlink()
    return folder


def test_runs_are_under_runs_and_files_where_it_says(group, saelab_json, saelab):
    found = saelab_json("compare", group, "--tokens", "300")
    assert found["out"] == str(group / "comparison")
    assert [run["run"] for run in found["runs"]] == [str(group / f"topk-k4-f{n}-s0") for n in (32, 48)]
    assert {"l0", "fvu", "ce_recovered_zero", "kl", "dead_fraction", "recipe", "k", "width"} <= set(
        found["runs"][0]
    )
    assert "topk-k4-f64-s0" in found["left_out"][0]
    saved = json.loads((group / "comparison" / "comparison.json").read_text())
    assert saved == {key: value for key, value in found.items() if key != "out"}
    page = (group / "comparison" / "page.html").read_text()
    assert "topk-k4-f64-s0 was left out" in page
    code, out, _ = saelab("verify", group / "comparison")
    assert code == 0, out


def test_the_table_for_a_terminal(group, store_and_run, saelab, tmp_path):
    code, out, err = saelab("compare", group, store_and_run[1], "--tokens", "300", "--out", tmp_path / "out")
    assert code == 0, err
    first, header, *rows = out.splitlines()
    assert first.startswith("3 SAEs of ") and first.endswith(" held-out tokens")
    assert header.split() == ["L0", "FVU", "CE", "zero", "CE", "mean", "KL", "dead", "dense"]
    assert [row.split(",")[0] for row in rows[:3]] == ["topk"] * 3 and "width=32" in rows[0]
    assert rows[3].startswith("warning: ") and "topk-k4-f64-s0" in rows[3]
    assert rows[-1].startswith(f"{tmp_path / 'out'}: comparison.csv")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}"], "say with --out where the comparison goes"),
        (["{run}", "--out", "{store}"], "is a folder of kind store, not a comparison"),
        (["{run}", "--out", "{new}", "--column", "body"], "go with --text"),
        (
            ["{run}", "--out", "{new}", "--store", "{store}", "--text", "stdlib"],
            "give --store or --text, not both",
        ),
        (["{store}", "--out", "{new}"], "is not a run but a folder of kind store"),
        (["{new}", "--out", "{new}"], "does not exist"),
        (["{run}", "--out", "{new}", "--tokens", "0"], "positive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_usage_is_one_line(store_and_run, saelab, tmp_path, arguments, words):
    store, run = store_and_run
    filled = [part.format(run=run, store=store, new=tmp_path / "new") for part in arguments]
    code, out, err = saelab("compare", *filled)
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1 and words in err
    assert not (tmp_path / "new").exists()
