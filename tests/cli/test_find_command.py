"""saelab find: what a user sees."""

import csv
import json
import shutil

import pyarrow.parquet as pq
import pytest

from saelab.cli.main import run

AT = r"re:^@\w+"


@pytest.fixture(scope="module")
def indexed(store_and_run, tmp_path_factory):
    """A copy of the run with an index of small texts, in which every feature is called by a formula."""
    folder = tmp_path_factory.mktemp("find")
    shutil.copytree(store_and_run[1], folder / "run")
    (folder / "store").symlink_to(store_and_run[0])  # a run knows its store by the way to it
    texts = [
        f"@cached\ndef area_{i}(x):\n    return x\n" if i % 2 else f"value_{i} = {i}\n" for i in range(40)
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name, start in (("odd", 1), ("even", 0)):
        lines = [json.dumps({"text": text}) + "\n" for text in texts[start::2]]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    assert run(["index", str(folder / "run"), "--text", str(folder / "texts.jsonl")]) == 0
    assert run(["index", str(folder / "run"), "--text", str(folder / "texts.jsonl"), *BARE]) == 0
    labels = "".join(f'{feature},"=1+{feature}"\n' for feature in range(512))
    (folder / "labels.csv").write_text("feature,label\n" + labels)
    assert run(["labels", "import", str(folder / "run"), str(folder / "labels.csv")]) == 0
    return folder


BARE = ["--name", "bare", "--keep-codes", "False"]


def test_features_of_a_regex(saelab, saelab_json, indexed):
    found = saelab_json("find", indexed / "run", "--positive", AT, "--limit", 4, "--draws", 49)
    assert (found["unit"], found["pool"], found["negative"]) == ("line", "max", "the rest")
    assert found["n_positive"] == 10 and len(found["features"]) == 4
    aurocs = [one["auroc"] for one in found["features"]]
    assert aurocs == sorted(aurocs, reverse=True) and aurocs[0] > 0.9
    assert all(one["auroc_low"] <= one["auroc"] <= one["auroc_high"] for one in found["features"])
    code, out, err = saelab("find", indexed / "run", "--positive", AT, "--limit", 4, "--draws", 49)
    assert code == 0 and "AUROC [95 %]" in out and f" {found['features'][0]['feature']}  =1+" in out
    assert "comparing: " in err


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_candidates_are_written(saelab, saelab_json, indexed, tmp_path, kind):
    out = tmp_path / f"found.{kind}"
    command = ["find", indexed / "run", "--positive", AT, "--limit", 3, "--draws", 19, "--out", out]
    found = saelab_json(*command)["features"]
    if kind == "csv":
        rows = list(csv.DictReader(out.read_text().splitlines()))
        assert [row["name"] for row in rows] == [f"'=1+{one['feature']}" for one in found]
        assert not any(value[:1] in "=+@" for row in rows for value in row.values())
        assert [float(row["auroc"]) for row in rows] == [one["auroc"] for one in found]
    else:
        assert pq.read_table(out).to_pylist() == found
    code, _, err = saelab(*command)
    assert code == 2 and "nothing is overwritten" in err


def test_files_that_the_corpus_holds(saelab_json, indexed):
    sets = ["--positive", indexed / "odd.jsonl", "--negative", indexed / "even.jsonl"]
    found = saelab_json("find", indexed / "run", *sets, "--draws", 19)
    assert (found["unit"], found["n_from_corpus"], found["n_positive"]) == ("document", 40, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--positive", "re:("], "is no regular expression"),
        (["--positive", "re:a*"], "matches the empty text"),
        (["--positive", "re:zzzz"], "is in the positive set 're:zzzz'"),
        (["--positive", AT, "--negative", AT], "both sets are"),
        (["--positive", "column:author=me"], "no column 'author'"),
        (["--positive", "column:author"], "column:NAME=VALUE"),
        (["--positive", AT, "--negative", "EVEN"], "a file is compared with a file"),
        (["--positive", "ODD", "--negative", "nowhere.jsonl"], "nowhere.jsonl is no file"),
        (["--positive", "ODD", "--negative", "EVEN", "--unit", "line"], "compared whole"),
        (["--positive", AT, "--name", "none"], "none"),
        (["--positive", AT, "--name", "bare"], "--keep-codes"),
        (["--positive", AT, "--limit", "0"], "limit must be from 1"),
        (["--positive", AT, "--draws", "1"], "draws must be from 19"),
        (["--positive", AT, "--out", "found.xlsx"], "must end in .parquet or .csv"),
    ],
)
def test_wrong_usage_is_one_line(saelab, indexed, arguments, message):
    files = {"ODD": indexed / "odd.jsonl", "EVEN": indexed / "even.jsonl"}
    code, out, err = saelab("find", indexed / "run", *[files.get(one, one) for one in arguments])
    assert code == 2 and out == ""
    assert message in err and len(err.strip().splitlines()) == 1
