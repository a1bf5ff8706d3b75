"""Which runs paths stand for, and where the records of their evaluation are kept."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from run_helpers import SMALL, evaluate, text_of

from saelab import api
from saelab.activations.store import Store
from saelab.errors import DamagedFileError, UsageError
from saelab.evaluation.records import require_writable
from saelab.evaluation.run_list import expand_runs, open_run
from saelab.sae.files import sae_identity
from saelab.storage.inspect import verify_folder
from saelab.training.group import Group
from saelab.training.run import Run


def test_a_group_stands_for_its_finished_members_and_names_the_others(trained, copy):
    found = expand_runs([trained / "group", trained / "alone"])
    assert [run.path.name for run in found.runs] == ["topk-k4-f32-s0", "topk-k4-f48-s0", "alone"]
    assert found.left_out == ()
    group = copy("group")
    (group / "topk-k4-f32-s0" / "manifest.json").unlink()
    found = expand_runs([group])
    assert [run.path.name for run in found.runs] == ["topk-k4-f48-s0"]
    (reason,) = found.left_out
    assert str(group / "topk-k4-f32-s0") in reason and "not finished" in reason
    replace(Group.open(group), parked={"topk-k4-f32-s0": "diverged by step 7"}).save()
    assert "it diverged by step 7" in expand_runs([group]).left_out[0]


def test_paths_that_are_no_finished_run_are_refused_with_what_to_do(trained, copy, tmp_path):
    with pytest.raises(UsageError, match="at least one run"):
        expand_runs([])
    with pytest.raises(UsageError, match="does not exist"):
        expand_runs([tmp_path / "none"])
    with pytest.raises(UsageError, match="is a group of runs; name one of its members: topk-k4-f32-s0, topk"):
        open_run(trained / "group")
    alone, group = copy("alone"), copy("group")
    (alone / "manifest.json").unlink()
    with pytest.raises(UsageError, match="not finished; run its train command again"):
        expand_runs([alone])
    for name in ("topk-k4-f32-s0", "topk-k4-f48-s0"):
        (group / name / "manifest.json").unlink()
    with pytest.raises(
        UsageError, match=r"no finished run to use: .*f32-s0 was left out.*f48-s0 was left out"
    ):
        expand_runs([group])
    (group / "group.json").write_text("{}")
    with pytest.raises(DamagedFileError, match="does not describe a group"):
        expand_runs([group])


def test_the_record_lies_in_the_run_and_says_whose_it_is(trained, copy, loads):
    run = copy("alone")
    (printed,) = evaluate([run])
    record = json.loads((run / "evaluations" / "heldout.json").read_text())
    assert record == printed | {"run": "alone", "sae_identity": sae_identity(run / "sae")}
    assert record["model_mismatch"] is None
    evaluate([run], name="again")
    assert sorted(path.name for path in (run / "evaluations").glob("*.json")) == [
        "again.json",
        "heldout.json",
        "manifest.json",
    ]
    assert verify_folder(run).problems == []


def test_an_overlay_keeps_records_by_the_identity_of_the_sae_and_leaves_the_run_alone(
    trained, copy, loads, tmp_path
):
    run, out = copy("alone"), tmp_path / "mine"
    before = sorted(run.rglob("*"))
    evaluate([run], out=out)
    assert sorted(run.rglob("*")) == before
    identity = sae_identity(run / "sae")
    record = json.loads((out / identity / "evaluations" / "heldout.json").read_text())
    assert record["sae_identity"] == identity and record["run"] == "alone"
    assert verify_folder(out).problems == []
    shutil.move(run, tmp_path / "renamed")
    evaluate([tmp_path / "renamed"], out=out, name="again")
    assert len(list(out.iterdir())) == 1, "another name of the run is the same SAE"


def test_a_name_is_derived_from_where_the_tokens_come_from(trained, world, copy, loads):
    run = copy("alone")
    (own,) = evaluate([run])
    (given,) = evaluate([run], store=world.unmasked)
    (other,) = evaluate([run], store=world.masked)
    (text,) = evaluate([run], text=text_of(world))
    (model,) = evaluate([run], model=world.lm.spec.name)
    assert [record["source"]["kind"] for record in (own, given, other, text, model)] == [
        "own",
        "own",
        "store",
        "text",
        "model",
    ]
    assert other["source"]["store_identity"] == world.masked.identity
    assert text["source"]["text"]["source"] == text_of(world) and text["source"]["packing"] == "packed"
    assert text["source"]["model"]["name"] == world.lm.spec.name
    assert sorted(path.stem for path in (run / "evaluations").glob("*.json")) == [
        "heldout",
        "manifest",
        "model-model",
        "store-masked",
        "text-text-jsonl",
    ]


def test_a_record_of_other_tokens_is_not_replaced(trained, world, copy, loads, tmp_path, monkeypatch):
    run = copy("alone")
    evaluate([run], name="mine")
    before = (run / "evaluations" / "mine.json").read_bytes()
    for other in ({"store": world.masked}, {"text": text_of(world)}):
        with pytest.raises(
            UsageError, match=r"mine.json is the record of another evaluation \(held-out.*--name"
        ):
            evaluate([run], name="mine", **other)
    assert (run / "evaluations" / "mine.json").read_bytes() == before
    evaluate([run], name="mine", tokens="100")
    assert (run / "evaluations" / "mine.json").read_bytes() != before, "other numbers of the same tokens"
    text = tmp_path / "other.jsonl"
    text.write_text('{"text": "ka mi to re su lo"}\n' * 9)
    evaluate([run], text=str(text))
    monkeypatch.chdir(tmp_path)
    evaluate([run], text="./other.jsonl")
    (run / "evaluations" / "mine.json").write_text("{")
    evaluate([run], name="mine", store=world.masked)  # nothing is lost with a damaged record


def test_one_run_and_several_are_told_apart_in_python(trained, copy, loads, unchecked):
    paths = [trained / "alone", trained / "live"]
    with pytest.raises(UsageError, match="evaluate takes one run; evaluate_many takes several"):
        api.evaluate(paths, quiet=True)
    for one in (copy("alone"), str(trained / "alone"), Run.open(trained / "alone")):
        assert len(api.evaluate_many(one, tokens=100, quiet=True)) == 1


def test_a_run_that_is_being_extended_is_named_with_its_shorter_one(copy):
    run = copy("alone")
    for tokens in (80, 640):
        shutil.copytree(trained_only(run), run / "lengths" / f"tokens-{tokens}")
    (run / "manifest.json").unlink()
    with pytest.raises(
        UsageError, match=r"not finished; .* or use the shorter run .*/alone/lengths/tokens-640$"
    ):
        open_run(run)


def trained_only(run):
    """Return a copy of a run's files beside it."""
    target = run.with_name("whole")
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(run, target, ignore=lambda *_: ["lengths"])


def test_folders_that_are_no_runs_are_told_what_they_are(trained, world, tmp_path):
    with pytest.raises(UsageError, match=r"is not a run but a folder of kind store; .* --store"):
        open_run(world.masked.path)
    with pytest.raises(UsageError, match=r"is not a run but a folder of kind sae$"):
        open_run(trained / "alone" / "sae")
    with pytest.raises(UsageError, match="is not a run; saelab ls"):
        open_run(tmp_path)


def test_a_read_only_run_is_refused_before_any_work_and_told_of_the_overlay(tmp_path):
    """In a child that has given up its privileges: root may write anywhere."""
    store = Store.from_tensors(tmp_path / "store", torch.randn(2_000, 6), dtype="float32")
    run = api.train(store, out=tmp_path / "run", width=12, recipe_options={"k": 2}, **SMALL)
    (tmp_path / "mine").mkdir(mode=0o777)
    (tmp_path / "mine").chmod(0o777)
    for place in [tmp_path, *tmp_path.rglob("*")]:
        if place.name != "mine":
            place.chmod(0o555 if place.is_dir() else 0o444)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != parent.parent:
            parent.chmod(parent.stat().st_mode | 0o055)
    become_nobody = "os.setgid(65534); os.setuid(65534)" if os.geteuid() == 0 else "pass"
    script = (
        "import os, sys; from pathlib import Path\n"
        "from saelab import api; from saelab.errors import UsageError\n"
        "run, out = map(Path, sys.argv[1:])\n"
        "api.evaluate(run, out=out / 'first', quiet=True)\n"  # nobody may not be able to import
        f"{become_nobody}\n"
        "for place in (None, run / 'sub', out):\n"
        "    try: print(api.evaluate(run, out=place, quiet=True).reconstruction.n_tokens > 0)\n"
        "    except UsageError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(run.path), str(tmp_path / "mine")],
        capture_output=True,
        text=True,
    )
    for place in [tmp_path, *tmp_path.rglob("*")]:  # so that it can be removed
        place.chmod(0o755)
    assert done.stdout.splitlines() == [
        f"{run.path} cannot be written; keep its evaluation elsewhere with --out FOLDER",
        f"{run.path / 'sub'} cannot be written; give another folder with --out",
        "True",
    ], done.stderr


def test_an_overlay_that_is_a_file_is_refused(trained, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file cannot be written; give another folder"):
        require_writable(Run.open(trained / "alone"), tmp_path / "file")
