"""The command contract: results as text and JSON, exit codes, one-line errors, dry runs."""

import json
import signal

import pytest
from commands import data_files, start, wait_for

from saelab.storage.inspect import verify_folder

HOOK = "blocks.1.hook_resid_post"


def test_hooks_lists_both_spellings(saelab, saelab_json):
    points = {point["alias"]: point for point in saelab_json("hooks")["hookpoints"]}
    assert points["blocks.2.hook_resid_post"]["module_path"] == "model.layers.2.output"
    assert points["blocks.2.hook_resid_post"]["d_in"] == 256
    code, out, _ = saelab("hooks", "embedded")
    assert code == 0
    assert "blocks.3.mlp.hook_post" in out


def test_cache_and_train_leave_folders_that_verify_and_ls_know(store_and_run, saelab, saelab_json):
    store, run = store_and_run
    found = saelab_json("verify", store.parent)
    assert found["problems"] == []
    assert found["files"] > 8
    kinds = {entry["path"]: entry["kind"] for entry in saelab_json("ls", store.parent)["entries"]}
    assert kinds == {str(store): "store", str(run): "run"}
    _, out, _ = saelab("ls", store.parent)
    assert "topk (k=8), 512 features at model.layers.1.output" in out


def test_a_flipped_bit_makes_verify_fail_and_name_the_file(store_and_run, saelab, tmp_path):
    import shutil

    shutil.copytree(store_and_run[1], tmp_path / "copy")
    weights = tmp_path / "copy" / "sae" / "weights.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 4
    weights.write_bytes(raw)
    code, out, _ = saelab("verify", tmp_path / "copy")
    assert code == 1
    assert "weights.safetensors is damaged" in out


def test_evaluate_prints_every_metric_and_keeps_the_record(store_and_run, saelab, saelab_json):
    _, run = store_and_run
    record = saelab_json("evaluate", run, "--tokens", "600")
    assert 0 < record["l0"] <= 8
    assert 0 < record["fvu"] < 1
    assert record["fvu"] == pytest.approx(1 - record["explained_variance"])
    assert record["ce_clean"] < record["ce_spliced"] < record["ce_zero_ablation"]
    assert json.loads((run / "evaluations" / "heldout.json").read_text())["fvu"] == record["fvu"]
    assert verify_folder(run).problems == []
    _, out, _ = saelab("evaluate", run, "--tokens", "600")
    assert "loss recovered against zeros" in out


def test_several_runs_stand_under_runs(store_and_run, saelab_json):
    _, run = store_and_run
    found = saelab_json("evaluate", run, run, "--tokens", "300")
    assert [entry["run"] for entry in found["runs"]] == [str(run), str(run)]
    assert found["runs"][0]["tokens_hash"] == found["runs"][1]["tokens_hash"]


def test_a_text_of_ones_own_is_evaluated_whole(store_and_run, saelab_json, tmp_path):
    text = tmp_path / "my code.txt"
    text.write_text("import os\n\n\ndef main(argv):\n    return os.path.join(argv)\n" * 40)
    record = saelab_json("evaluate", store_and_run[1], "--text", text, "--tokens", "500", "--name", "mine")
    assert record["n_tokens"] > 200
    assert record["ce_mean_ablation"] is not None
    assert (store_and_run[1] / "evaluations" / "mine.json").exists()


@pytest.mark.parametrize("command", ["cache", "train"])
def test_a_dry_run_prints_the_plan_and_writes_nothing(store_and_run, saelab_json, tmp_path, command):
    store, _ = store_and_run
    out = tmp_path / "nothing"
    arguments = {
        "cache": ["embedded", "stdlib", "--at", HOOK, "--tokens", "20k"],
        "train": [store, "--width", "x4", "--tokens", "1M"],
    }
    plan = saelab_json(command, *arguments[command], "--out", out, "--dry-run")["plan"]
    assert plan["memory_bytes"] > 0
    assert plan["disk_bytes"] > 0
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "did you mean train?"),
        (["cache", "embedded", "stdlib", "--tokens", "1k", "--out", "x"], "--at"),
        (
            ["cache", "embedded", "stdlib", "--at", HOOK, "--tokens", "1z", "--out", "x"],
            "'1z' is not a positive",
        ),
        (
            ["cache", "embedded", "stdlib", "--at", "blocks.1.hook_resid", "--tokens", "1k", "--out", "x"],
            HOOK,
        ),
        (["cache", "embedded", "missing.txt", "--at", HOOK, "--tokens", "1k", "--out", "x"], "missing.txt"),
        (["train", "{store}", "--tokens", "9k", "--width", "x2", "--k", "0", "--out", "x"], "k must be"),
        (
            ["train", "{store}", "--tokens", "1k", "--arch", "topj", "--out", "x"],
            "topj is unknown; known: batch-topk, ",
        ),
        (["train", "{store}", "--tokens", "1k", "--at", "blocks.9", "--out", "x"], "no hookpoint 'blocks.9'"),
        (["train", "{store}", "--tokens", "9k", "--set", "gated.k=3", "--out", "x"], "--set gated.k=3"),
        (
            ["train", "{store}", "--tokens", "9k", "--set", "topk.q=3", "--out", "x"],
            "unknown fields: q; known: k",
        ),
        (["train", "{store}", "--tokens", "9k", "--set", "topk.k=true", "--out", "x"], "k is True"),
        (
            ["train", "{store}", "--tokens", "9k", "--k", "3", "--set", "topk.k=3", "--out", "x"],
            "given twice",
        ),
        (["evaluate"], "run"),
        (["evaluate", "{store}/missing"], "does not exist"),
        (["evaluate", "{run}", "--name", "../evil"], "cannot name a record"),
        (["evaluate", "{run}", "--name", "manifest"], "cannot name a record"),
        (["verify", "{store}/missing"], "not a folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_usage_is_one_line_with_code_2_and_leaves_nothing(
    store_and_run, saelab, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    store, run = store_and_run
    code, out, err = saelab(*(argument.format(store=store, run=run) for argument in arguments))
    assert code == 2, err
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert words in err
    assert not (tmp_path / "x").exists() or not any(
        p.is_file() and p.name != ".lock" for p in (tmp_path / "x").rglob("*")
    )


def test_a_failure_is_one_line_with_code_1_and_debug_shows_the_trace(saelab, tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    code, _, err = saelab("train", tmp_path, "--tokens", "1M", "--out", tmp_path / "run")
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    code, _, err = saelab("train", tmp_path, "--tokens", "1M", "--out", tmp_path / "run", "--debug")
    assert "Traceback" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_with_130_and_the_same_command_goes_on(store_and_run, tmp_path, number):
    store, _ = store_and_run
    options = [store, "--k", 8, "--width", "x2", "--tokens", "150k", "--batch", 256, "--checkpoint-every", 50]
    process = start("train", *options, "--out", tmp_path / "run")
    wait_for(lambda: any((tmp_path / "run" / "checkpoints").glob("step-*/manifest.json")), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "the same command goes on" in err.splitlines()[-1]
    assert start("train", *options, "--out", tmp_path / "run").wait(timeout=300) == 0
    assert start("train", *options, "--out", tmp_path / "straight").wait(timeout=300) == 0
    assert data_files(tmp_path / "run") == data_files(tmp_path / "straight")


def test_kill_9_while_training_loses_nothing(store_and_run, tmp_path):
    store, _ = store_and_run
    options = [store, "--k", 8, "--width", "x2", "--tokens", "100k", "--batch", 256, "--checkpoint-every", 20]
    for count in (1, 2):
        process = start("train", *options, "--out", tmp_path / "run")
        folder = tmp_path / "run" / "checkpoints"
        wait_for(lambda: len(list(folder.glob("*/manifest.json"))) >= count, process)  # noqa: B023
        process.kill()
        process.wait()
    assert start("train", *options, "--out", tmp_path / "run").wait(timeout=300) == 0
    assert start("train", *options, "--out", tmp_path / "straight").wait(timeout=300) == 0
    assert data_files(tmp_path / "run") == data_files(tmp_path / "straight")
