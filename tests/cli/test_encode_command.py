"""saelab encode: what a user sees."""

import json

import pyarrow.parquet as pq
import pytest


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "texts.jsonl"
    texts = [f"def area_{i}(x):\n    return x\n" for i in range(8)]
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": one}) + "\n" for i, one in enumerate(texts)))
    return path


def test_codes_are_written(saelab, saelab_json, store_and_run, text, tmp_path):
    out = tmp_path / "codes.parquet"
    found = saelab_json("encode", store_and_run[1], text, "--out", out)
    table = pq.read_table(out)
    assert found == {"out": str(out), "rows": len(table)} and len(table) > 0
    assert set(table["document"].to_pylist()) == {f"d{i}" for i in range(8)}
    assert all(len(features) <= 8 for features in table["features"].to_pylist())
    code, shown, err = saelab("encode", store_and_run[1], text, "--out", tmp_path / "again.parquet")
    assert code == 0 and f"{len(table):,} rows" in shown and "encoding: " in err
    assert pq.read_table(tmp_path / "again.parquet").equals(table)


def test_chosen_features_and_documents(saelab_json, store_and_run, text, tmp_path):
    command = ["encode", store_and_run[1], text, "--features", 3, 0, "--tokens", 20]
    assert saelab_json(*command, "--out", tmp_path / "a.parquet")["rows"] == 20
    assert pq.read_table(tmp_path / "a.parquet").column_names[-2:] == ["feature_3", "feature_0"]
    saelab_json(*command, "--above", 0, "--out", tmp_path / "b.parquet")
    assert pq.read_table(tmp_path / "b.parquet").column_names[-1] == "snippet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "OUT.csv"], "must end in .parquet"),
        (["--out", "OUT.parquet", "--features", "512"], "there is no feature 512"),
        (["--out", "OUT.parquet", "--above", "1"], "needs --features"),
        (["--out", "OUT.parquet", "--column", "body"], "body"),
        (["--out", "THERE"], "nothing is overwritten"),
    ],
)
def test_wrong_usage_is_one_line(saelab, store_and_run, text, tmp_path, arguments, message):
    there = tmp_path / "there.parquet"
    there.write_bytes(b"mine")
    names = {"OUT.csv": tmp_path / "x.csv", "OUT.parquet": tmp_path / "x.parquet", "THERE": there}
    code, out, err = saelab("encode", store_and_run[1], text, *[names.get(one, one) for one in arguments])
    assert code == 2 and out == ""
    assert message in err and len(err.strip().splitlines()) == 1
    assert there.read_bytes() == b"mine" and not list(tmp_path.glob("x.*"))
