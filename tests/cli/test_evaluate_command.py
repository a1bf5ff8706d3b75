"""`saelab evaluate`: groups, overlays, other models, and options that do not go together."""

import json
import shutil

import pytest

from saelab import api
from saelab.cli.evaluate import describe_evaluation
from saelab.sae.files import sae_identity
from saelab.training.grid import Grid

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def group(store_and_run, tmp_path_factory):
    """A group of two, of which one is not finished."""
    folder = tmp_path_factory.mktemp("evaluate") / "group"
    grid = Grid(widths=(32, 48), recipe_options={"topk": {"k": 4}})
    api.train_grid(store_and_run[0], grid, tokens=512, batch=128, out=folder, quiet=True)
    (folder / "topk-k4-f48-s0" / "manifest.json").unlink()
    return folder


def test_a_group_is_its_finished_members_and_the_others_are_named(group, saelab):
    code, out, _ = saelab("evaluate", group, "--tokens", "300")
    assert code == 0
    assert out.splitlines()[0].startswith(f"{group / 'topk-k4-f32-s0'}, ")
    assert out.splitlines()[-1] == (
        f"warning: {group / 'topk-k4-f48-s0'} was left out: it is not finished; run the group's train command again"
    )


def test_an_overlay_leaves_the_runs_as_they_are(group, saelab_json, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in group.rglob("*")}
    found = saelab_json("evaluate", group, "--tokens", "300", "--out", tmp_path / "mine", "--name", "first")
    assert {path: path.stat().st_mtime_ns for path in group.rglob("*")} == before
    (record,), (left_out,) = found["runs"], found["left_out"]
    run = group / "topk-k4-f32-s0"
    assert record["run"] == str(run) and "topk-k4-f48-s0" in left_out
    place = tmp_path / "mine" / sae_identity(run / "sae") / "evaluations" / "first.json"
    saved = json.loads(place.read_text())
    assert saved["fvu"] == record["fvu"] and saved["run"] == run.name


def test_another_model_is_refused_allowed_and_warned_of(store_and_run, saelab, saelab_json, tmp_path):
    from safetensors.torch import load_file, save_file

    from saelab.lm.embedded import model_folder

    shutil.copytree(model_folder(), tmp_path / "tuned")
    (weights,) = (tmp_path / "tuned").glob("*.safetensors")
    tensors = load_file(weights)
    name = next(name for name in tensors if "layers.3" in name and tensors[name].dim() == 2)
    tensors[name][0, 0] += 1
    save_file(tensors, weights, {"format": "pt"})
    command = [
        "evaluate",
        store_and_run[1],
        "--tokens",
        "300",
        "--name",
        "tuned",
        "--model",
        tmp_path / "tuned",
    ]
    code, _, err = saelab(*command)
    assert code == 2 and "here is model tuned" in err and "--allow-model-mismatch" in err
    record = saelab_json(*command, "--allow-model-mismatch")
    assert record["model_mismatch"]["sae_model"] == "embedded"
    assert "  warning: the SAE was trained on model embedded (" in describe_evaluation(record)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--adapter", "x"], "go with --model"),
        (["--revision", "main"], "go with --model"),
        (["--column", "body"], "go with --text"),
        (["--store", "{store}", "--text", "stdlib"], "give --store or --text, not both"),
        (["--store", "{store}", "--model", "embedded"], "give --store or --model, not both"),
        (["--tokens", "0"], "positive"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_that_do_not_go_together_are_one_line(store_and_run, saelab, options, words):
    store, run = store_and_run
    code, out, err = saelab("evaluate", run, *(option.format(store=store) for option in options))
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1 and words in err


def test_a_group_without_a_finished_member_is_refused(group, saelab, tmp_path):
    shutil.copytree(group, tmp_path / "group")
    (tmp_path / "group" / "topk-k4-f32-s0" / "manifest.json").unlink()
    code, _, err = saelab("evaluate", tmp_path / "group")
    assert code == 2 and "there is no finished run to use" in err


def test_only_held_out_tokens_are_called_so(store_and_run, saelab, tmp_path):
    store, run = store_and_run
    text = tmp_path / "new.jsonl"
    text.write_text("".join(json.dumps({"text": f"def new_{n}(): return {n}"}) + "\n" for n in range(30)))
    code, out, err = saelab("evaluate", run, "--tokens", "200", "--text", text)
    assert code == 0, err
    assert out.splitlines()[0].startswith(f"{run}, ")
    assert out.splitlines()[0].endswith(f" tokens of the text {text}") and "held-out" not in out
    assert (run / "evaluations" / "text-new-jsonl.json").exists()
    code, out, _ = saelab("evaluate", run, "--tokens", "200", "--store", store)
    assert code == 0 and out.splitlines()[0].endswith(" held-out tokens"), "the run's own store"
    code, out, err = saelab("evaluate", run, "--text", text, "--name", "heldout")
    assert code == 2 and len(err.splitlines()) == 1 and "keep this one under another name with --name" in err


def test_a_text_without_documents_to_evaluate_is_one_line_without_a_rooms_name(
    store_and_run, saelab, tmp_path
):
    text = tmp_path / "new.jsonl"
    text.write_text(json.dumps({"text": "x = 3"}) + "\n")
    code, _, err = saelab(
        "evaluate", store_and_run[1], "--text", text, "--heldout-share", "0", "--name", "none"
    )
    assert code == 2 and err.splitlines()[-1].startswith(f"saelab evaluate: {text} has no held-out document")


def test_what_is_no_run_is_refused_with_what_to_do(store_and_run, saelab, tmp_path):
    code, _, err = saelab("evaluate", store_and_run[0])
    assert code == 2 and "is not a run but a folder of kind store" in err and len(err.splitlines()) == 1
    code, _, err = saelab("evaluate", tmp_path / "gone")
    assert code == 2 and "does not exist; saelab ls" in err
