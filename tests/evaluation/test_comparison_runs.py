"""Runs on the same tokens: what is measured, what is taken from records, and what is refused."""

import csv
import io
import json
from dataclasses import replace

import pyarrow.parquet
import pytest
from run_helpers import evaluate, text_of

from saelab import api
from saelab.errors import SaelabError, UsageError
from saelab.evaluation.comparison import common, compare
from saelab.evaluation.comparison.folder import comparison_folder
from saelab.evaluation.comparison.table import TableRow, as_csv, as_parquet, columns
from saelab.evaluation.evaluate import Evaluation
from saelab.storage.inspect import verify_folder
from saelab.training.grid import Grid
from saelab.training.run import Run

TOKENS = "300"
FILES = {"comparison.csv", "comparison.parquet", "comparison.json", "page.html", "manifest.json"}


@pytest.fixture(scope="session")
def seeds(world, tmp_path_factory):
    """A group of two settings with two seeds each."""
    folder = tmp_path_factory.mktemp("seeds") / "group"
    grid = Grid(widths=(32,), k=(2, 6), seeds=(0, 1))
    api.train_grid(world.masked, grid, tokens=640, batch=64, out=folder, quiet=True)
    return folder


def compared(paths, out, **options):
    return api.compare(paths, out=out, **{"tokens": TOKENS, "quiet": True} | options)


def test_rows_are_what_an_evaluation_finds(trained, seeds, world, tmp_path, loads):
    found = compared([seeds], tmp_path / "out", lm=world.lm)
    records = evaluate([seeds])
    assert len(found.runs) == 4
    for one, record in zip(found.runs, records, strict=True):
        for name in (
            "l0",
            "fvu",
            "kl",
            "ce_recovered_zero",
            "ce_recovered_mean",
            "dead_fraction",
            "n_tokens",
        ):
            assert getattr(one.row, name) == record[name]
        assert one.row.tokens_hash == record["tokens_hash"] == found.tokens_hash
        assert sum(one.active_histogram) == record["n_tokens"]
        assert len(one.fvu_by_difficulty) == len(found.difficulty) == 10
    assert [one.row.setting for one in found.runs] == ["topk, k=2", "topk, k=2", "topk, k=6", "topk, k=6"]
    (front,) = found.fronts
    assert [point.metrics["fvu"].n for point in front.points] == [2, 2]
    assert [one.n_seeds for one in found.consistency] == [2, 2]
    assert found.runs[0].row.partnered_share == found.consistency[0].partnered_share
    l0 = found.common_l0
    assert front.points[0].mean("l0") < l0 < front.points[1].mean("l0")
    low, high = sorted(value for _, value in front.curve("fvu"))
    assert low < found.at_common_l0["topk"]["fvu"] < high


def test_the_folder_is_whole_and_its_files_agree(seeds, world, tmp_path):
    found = compared([seeds], tmp_path / "out", lm=world.lm)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names - {"records"} == FILES | {".lock"}  # records where the runs had none of these tokens
    assert verify_folder(tmp_path / "out").problems == []
    saved = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert saved == json.loads(json.dumps(found.to_json()))
    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = pyarrow.parquet.read_table(tmp_path / "out" / "comparison.parquet")
    assert table.column_names == list(columns()) == list(rows[0])
    assert (
        table["fvu"].to_pylist() == [float(row["fvu"]) for row in rows] == [r["fvu"] for r in saved["runs"]]
    )
    page = (tmp_path / "out" / "page.html").read_text()
    assert found.runs[0].row.setting in page


def test_the_same_comparison_again_measures_no_loss_and_gives_the_same_bytes(
    seeds, world, tmp_path, monkeypatch
):
    def files():
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name in FILES}

    compared([seeds], tmp_path / "out", lm=world.lm)
    first = files()
    monkeypatch.setattr(compare, "evaluate_runs", None)  # calling it would fail
    compared([seeds], tmp_path / "out", lm=world.lm)
    assert files() == first


def test_a_runs_own_record_is_taken_and_only_one_of_these_tokens(copy, world, tmp_path, monkeypatch):
    group = copy("group")
    evaluate([group / "topk-k4-f32-s0"])
    evaluate([group / "topk-k4-f48-s0"], tokens="200")
    measured = []
    real = compare.evaluate_runs

    def counted(runs, *arguments, **options):
        measured.extend(run.path.name for run in runs)
        return real(runs, *arguments, **options)

    monkeypatch.setattr(compare, "evaluate_runs", counted)
    compared([group], tmp_path / "out", lm=world.lm)
    assert measured == ["topk-k4-f48-s0"]


def test_a_damaged_record_is_measured_again(copy, world, tmp_path, monkeypatch):
    run = copy("group") / "topk-k4-f32-s0"
    (right,) = evaluate([run])
    record = run / "evaluations" / "heldout.json"
    record.write_text(record.read_text().replace(str(right["fvu"]), "0.001"))
    assert compared([run], tmp_path / "out", lm=world.lm).runs[0].row.fvu == right["fvu"]


def test_nothing_is_written_into_the_runs(copy, world, tmp_path):
    group = copy("group")
    before = {path: path.stat().st_mtime_ns for path in group.rglob("*")}
    compared([group], tmp_path / "out", lm=world.lm)
    assert {path: path.stat().st_mtime_ns for path in group.rglob("*")} == before


def test_a_group_holds_its_comparison_and_can_still_grow(copy, world):
    group = copy("group")
    compared([group], None, lm=world.lm)
    assert {path.name for path in (group / "comparison").iterdir()} >= FILES
    grid = Grid(widths=(32, 48, 56), recipe_options={"topk": {"k": 4}})
    api.train_grid(world.masked, grid, tokens=640, batch=64, out=group, quiet=True)
    assert len(compared([group], None, lm=world.lm).runs) == 3


def test_a_member_given_beside_its_group_counts_once(trained, world, tmp_path):
    group = trained / "group"
    found = compared(
        [group / "topk-k4-f48-s0", group, Run.open(group / "topk-k4-f32-s0")], tmp_path / "a", lm=world.lm
    )
    assert [one.row.width for one in found.runs] == [48, 32]


def test_runs_of_different_stores_need_a_common_one(trained, world, tmp_path):
    with pytest.raises(UsageError, match=r"alone were trained on different activations.*--store or --text"):
        compared([trained / "group", trained / "alone"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = compared(
        [trained / "group", trained / "alone"], tmp_path / "out", store=world.masked, lm=world.lm
    )
    assert {one.row.tokens_hash for one in found.runs} == {found.tokens_hash}
    assert found.source["store_identity"] == world.masked.identity
    assert len({one.row.front for one in found.runs}) == 3, "another training store is another front"


def test_a_live_run_is_compared_on_its_text(trained, world, tmp_path):
    found = compared([trained / "live"], tmp_path / "out", lm=world.lm)
    (record,) = evaluate([trained / "live"], lm=world.lm)
    assert (found.runs[0].row.fvu, found.tokens_hash) == (record["fvu"], record["tokens_hash"])
    assert sum(found.runs[0].active_histogram) == found.n_tokens


def test_a_text_serves_runs_of_different_sources(trained, world, tmp_path):
    runs = [trained / "group", trained / "live"]
    found = compared(runs, tmp_path / "out", text=text_of(world), lm=world.lm)
    assert len(found.runs) == 3 and found.source["kind"] == "text"
    assert {one.row.n_tokens for one in found.runs} == {found.n_tokens}


def test_tokens_that_differ_between_runs_are_refused(trained, world, tmp_path, monkeypatch):
    digests = iter(["a", "b"])
    monkeypatch.setattr(common, "digest_of", lambda *_: next(digests))
    with pytest.raises(UsageError, match="would be measured on different tokens"):
        compared([trained / "group", trained / "alone"], tmp_path / "out", text=text_of(world), lm=world.lm)


@pytest.mark.parametrize(
    "change", [{"output_hooks": ("model.layers.1.output",)}, {"d_out": 31}, {"model_identity": "another"}]
)
def test_different_targets_are_refused(trained, world, tmp_path, monkeypatch, change):
    real = common.load_sae_config

    def changed(folder):
        found = real(folder)
        return replace(found, **change) if folder.parent.name.endswith("f48-s0") else found

    monkeypatch.setattr(common, "load_sae_config", changed)
    with pytest.raises(
        UsageError, match=r"f32-s0 reconstructs model.layers.0.output .*compare runs of one target"
    ):
        compared([trained / "group"], tmp_path / "out")


def test_tokens_that_change_meanwhile_are_an_error(trained, world, tmp_path, monkeypatch):
    real = compare.evaluate_runs

    def other(*arguments, **options):
        return [replace(one, tokens_hash="f" * 32) for one in real(*arguments, **options)]

    assert "tokens_hash" in Evaluation.__dataclass_fields__
    monkeypatch.setattr(compare, "evaluate_runs", other)
    with pytest.raises(SaelabError, match="changed them meanwhile"):
        compared([trained / "group"], tmp_path / "out", lm=world.lm)


def test_activations_without_a_model_have_no_losses(tmp_path):
    import torch

    from saelab.activations.store import Store

    store = Store.from_tensors(tmp_path / "store", torch.randn(2_000, 6), dtype="float32")
    run = api.train(
        store, out=tmp_path / "run", width=12, recipe_options={"k": 2}, tokens=640, batch=64, quiet=True
    )
    found = compared([run], tmp_path / "out")
    assert found.difficulty == () and found.runs[0].fvu_by_difficulty == ()
    assert found.runs[0].row.kl is None and found.runs[0].row.fvu is not None


@pytest.mark.parametrize("kind", ["file", "store", "other"])
def test_something_else_is_never_overwritten(trained, world, tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "store":
        out = world.masked.path
    else:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    before = out.read_text() if kind == "file" else sorted(path.name for path in out.iterdir())
    with pytest.raises(UsageError, match="give another"):
        compared([trained / "group"], out)
    assert before == (out.read_text() if kind == "file" else sorted(path.name for path in out.iterdir()))


def test_what_an_interrupted_comparison_left_is_taken_up(tmp_path):
    with comparison_folder(tmp_path / "out"):
        (tmp_path / "out" / "records").mkdir()
        (tmp_path / "out" / "comparison.csv.writing").write_text("half")
    with comparison_folder(tmp_path / "out"):
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "records"]


def row(**changes):
    plain = dict.fromkeys(columns()) | dict.fromkeys(
        ("run", "recipe", "front", "setting", "hook", "input_hook"), "x"
    )
    plain |= {"model": "m", "tokens_hash": "t", "sae_identity": "s", "width": 4, "seed": 0, "lr": 0.5}
    plain |= {"tokens": 10, "batch": 2, "n_tokens": 3, "n_predictions": 2}
    return TableRow(**plain | changes)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_text_that_reads_as_a_formula_is_quoted_in_csv_alone(start):
    rows = [row(run=f"{start}cmd", ce_recovered_zero=-0.5)]
    (cells,) = csv.DictReader(io.StringIO(as_csv(rows).decode(), newline=""), strict=True)
    assert cells["run"] == f"'{start}cmd" and cells["ce_recovered_zero"] == "-0.5" and cells["fvu"] == ""
    (lossless,) = pyarrow.parquet.read_table(pyarrow.BufferReader(as_parquet(rows))).to_pylist()
    assert (
        lossless["run"] == f"{start}cmd" and lossless["ce_recovered_zero"] == -0.5 and lossless["fvu"] is None
    )


def test_parquet_has_types_even_where_every_value_is_missing():
    schema = pyarrow.parquet.read_table(pyarrow.BufferReader(as_parquet([row()]))).schema
    assert str(schema.field("kl").type) == "double" and str(schema.field("saes_in_pass").type) == "int64"
