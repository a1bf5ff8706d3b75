"""Runs on disk: finished once, resumed with the same bits from anywhere, never overwritten."""

import json
import shutil

import pytest
import torch
from training_helpers import SimulatedCrash, StopAfter, data_files, train_run

from saelab.activations.source import StoreSource
from saelab.activations.store import Store
from saelab.api import train_config
from saelab.errors import DamagedFileError, Interrupted, SaelabError, UsageError
from saelab.storage import files
from saelab.storage.inspect import verify_folder
from saelab.storage.manifest import read_manifest, write_manifest
from saelab.storage.tensors import read_tensors, write_tensors
from saelab.training import checkpoints
from saelab.training.checkpoints import finished_checkpoints
from saelab.training.config import train_config_from_json
from saelab.training.run import Run


def test_a_finished_run_opens_verifies_and_is_not_trained_again(make_config, store, tmp_path):
    run = train_run(make_config(), store, tmp_path / "run")
    assert verify_folder(tmp_path / "run").problems == []
    before = data_files(tmp_path / "run")
    again = train_run(make_config(), store, tmp_path / "run")
    assert again == run == Run.open(tmp_path / "run")
    assert data_files(tmp_path / "run") == before
    assert run.store_path == store.path.resolve()


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_run_that_names_a_store_no_folder_can_be_is_refused(make_config, store, tmp_path, name):
    folder = train_run(make_config(steps=1), store, tmp_path / "run").path
    write_manifest(folder, "run", list(read_manifest(folder).files), {"store": name})
    with pytest.raises(DamagedFileError, match="its manifest names the store"):
        Run.open(folder)


def test_a_run_whose_configuration_cannot_work_is_refused(make_config, store, tmp_path):
    folder = train_run(make_config(steps=1), store, tmp_path / "run").path
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"batch": 0}))
    with pytest.raises(UsageError, match="batch must be at least 1, not 0"):
        Run.open(folder)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(make_config, store, tmp_path, straight):
    train_run(make_config(), store, tmp_path / "again")
    assert data_files(tmp_path / "again") == straight
    train_run(make_config(seed=1), store, tmp_path / "other")
    assert data_files(tmp_path / "other")["sae/weights.safetensors"] != straight["sae/weights.safetensors"]


@pytest.mark.parametrize("looks", [0, 4, 7, 12, 22, 24])
def test_half_plus_resume_plus_half_equals_the_whole(make_config, store, tmp_path, straight, looks):
    with pytest.raises(Interrupted, match="the same command goes on") as stopped:
        train_run(make_config(), store, tmp_path / "run", stop=StopAfter(looks))
    newest = finished_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    if looks < 24:
        assert newest.name == f"step-{looks + 1:06d}"
        assert f"after step {looks + 1} of 24 and saved" in str(stopped.value)
    else:
        assert newest.name == "step-000024"
        assert "stopped while finishing" in str(stopped.value)
    train_run(make_config(), store, tmp_path / "run")
    assert data_files(tmp_path / "run") == straight


def test_a_crash_at_every_write_leaves_a_run_that_the_same_call_finishes(
    make_config, store, tmp_path, monkeypatch
):
    config = make_config(steps=6, checkpoint_every=3)
    real = {"replace": files.os.replace, "fsync": files.os.fsync}
    calls = {"left": None, "seen": 0}

    def counting(name):
        def call(*arguments):
            calls["seen"] += 1
            if calls["left"] is not None:
                calls["left"] -= 1
                if calls["left"] < 0:
                    raise SimulatedCrash
            return real[name](*arguments)

        return call

    for name in real:
        monkeypatch.setattr(files.os, name, counting(name))
    train_run(config, store, tmp_path / "counted")
    straight = data_files(tmp_path / "counted")
    total = calls["seen"]
    assert total > 30
    for crash_at in range(total):
        folder = tmp_path / f"crash-{crash_at}"
        calls["left"] = crash_at
        with pytest.raises(SimulatedCrash):
            train_run(config, store, folder)
        calls["left"] = None
        train_run(config, store, folder)
        assert data_files(folder) == straight, f"crash at write {crash_at}"
        shutil.rmtree(folder)


def test_checkpoints_kept_are_the_last_two_and_the_one_before_the_decay(make_config, store, tmp_path):
    train_run(make_config(steps=30), store, tmp_path / "run")
    names = [place.name for place in finished_checkpoints(tmp_path / "run" / "checkpoints")]
    assert names == ["step-000021", "step-000025", "step-000030"]


def test_a_crash_while_old_checkpoints_are_removed_leaves_no_trace(make_config, store, tmp_path, monkeypatch):
    config = make_config(steps=25)
    train_run(config, store, tmp_path / "straight")
    real, seen = checkpoints._prune, []

    def crashing(folder, every):
        seen.append(folder)
        if len(seen) == 6:  # five regular checkpoints and the branch point: the last step's
            raise SimulatedCrash
        real(folder, every)

    monkeypatch.setattr(checkpoints, "_prune", crashing)
    with pytest.raises(SimulatedCrash):
        train_run(config, store, tmp_path / "run")
    train_run(config, store, tmp_path / "run")
    assert data_files(tmp_path / "run") == data_files(tmp_path / "straight")


def test_another_configuration_is_refused_with_the_difference(make_config, store, tmp_path):
    train_run(make_config(), store, tmp_path / "run")
    with pytest.raises(UsageError, match=r"recipe\.k: 4 there, 5 now"):
        train_run(make_config(k=5), store, tmp_path / "run")


def test_a_folder_with_other_files_is_refused(make_config, store, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds other files \(thesis\.txt\)"):
        train_run(make_config(), store, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_two_trainers_on_one_folder_the_second_fails_at_once(make_config, store, tmp_path):
    from saelab.storage.lock import locked

    with locked(tmp_path / "run", "train"), pytest.raises(SaelabError, match="in use by another process"):
        train_run(make_config(), store, tmp_path / "run")


def test_another_thread_count_is_refused_for_exact_and_allowed_for_plain(make_config, store, tmp_path):
    with pytest.raises(Interrupted):
        train_run(make_config(), store, tmp_path / "run", stop=StopAfter(6))
    state = next((tmp_path / "run" / "checkpoints").glob("*/state.json"))
    facts = json.loads(state.read_text())
    files.write_json(state, facts | {"threads": facts["threads"] + 1})
    write_manifest(state.parent, "checkpoint", ["state.json", "state.safetensors"], {"step": facts["step"]})
    with pytest.raises(SaelabError, match="--resume plain"):
        train_run(make_config(), store, tmp_path / "run")
    assert train_run(make_config(), store, tmp_path / "run", resume="plain")


def test_a_damaged_checkpoint_is_named_and_nothing_is_lost(make_config, store, tmp_path):
    with pytest.raises(Interrupted):
        train_run(make_config(), store, tmp_path / "run", stop=StopAfter(12))
    newest = finished_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    with pytest.raises(SaelabError, match=r"is damaged: .* remove .* to go on from the checkpoint before it"):
        train_run(make_config(), store, tmp_path / "run")


def make_config_for(store):
    options = {"width": 48, "lr": 1e-2, "batch": 64, "tokens": 3 * 64, "skip_nonfinite": True}
    return train_config(store, "topk", recipe_options={"k": 4}, **options)


def poisoned_store(tmp_path, store, value, rows=1700):
    """A store whose activations hold a bad value that no cache of ours would have let pass."""
    shutil.copytree(store.path, tmp_path / "poisoned")
    shard = next((tmp_path / "poisoned" / "hooks").rglob("*.safetensors"))
    tensors = read_tensors(shard)
    tensors["activations"][rows, 3] = value
    write_tensors(shard, tensors)
    return Store.open(tmp_path / "poisoned")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_stop_the_run_and_are_kept(make_config, store, tmp_path, value):
    poisoned = poisoned_store(tmp_path, store, value)
    with pytest.raises(SaelabError, match=r"1 of 64 activations hold NaN or inf, the first at token 1,700"):
        train_run(make_config(steps=80), poisoned, tmp_path / "run")
    saved = read_tensors(next((tmp_path / "run" / "nonfinite").iterdir()))
    assert int((~torch.isfinite(saved["x"])).any(1).sum()) == 1


def test_batches_that_are_not_finite_can_be_skipped_and_are_counted(make_config, store, tmp_path):
    poisoned = poisoned_store(tmp_path, store, float("nan"))
    run = train_run(make_config(steps=80, skip_nonfinite=True), poisoned, tmp_path / "run")
    last = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["skipped_batches"] >= 1
    assert torch.isfinite(run.sae().W_dec).all()


@pytest.mark.parametrize("log_every", [1, 1000])
def test_divergence_is_one_line_and_every_checkpoint_that_is_kept_is_good(
    make_config, store, tmp_path, log_every
):
    config = make_config(lr=1e4, log_every=log_every, checkpoint_every=2)
    with pytest.raises(
        SaelabError, match=r"diverged by step .* start a new run with a learning rate below 1e\+04"
    ):
        train_run(config, store, tmp_path / "run")
    for place in finished_checkpoints(tmp_path / "run" / "checkpoints"):
        assert all(torch.isfinite(t).all() for t in read_tensors(place / "state.safetensors").values())


def test_a_run_whose_every_batch_is_skipped_still_finishes(tmp_path):
    store = Store.from_tensors(tmp_path / "clean", torch.randn(4096, 16), dtype="float32")
    poisoned = poisoned_store(tmp_path, store, float("nan"), rows=slice(0, None, 2))
    run = train_run(make_config_for(poisoned), poisoned, tmp_path / "run")
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["skipped_batches"] == 3
    assert lines[-1]["fvu"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a whole number from 1 to the width 48, not 0"),
        ({"k": 49}, "not 49"),
        ({"width": 0}, "positive whole number"),
        ({"lr": -1.0}, "lr must be a positive number"),
        ({"lr": float("nan")}, "lr is nan, not a finite number"),
        ({"batch": 10**6, "steps": 1}, "tokens"),
        ({"grad_clip": 0.0}, "grad_clip must be positive"),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_bound(make_config, options, message):
    with pytest.raises(UsageError, match=message):
        make_config(**options)


def test_a_batch_larger_than_the_store_is_refused(store, make_config, tmp_path):
    with pytest.raises(UsageError, match="batch"):
        train_run(make_config(tokens=10_000, batch=10_000), store, tmp_path / "run")
    assert train_run(make_config(), store, tmp_path / "run"), "the corrected command must work"


def test_a_store_that_the_configuration_does_not_name_is_refused(make_config, tmp_path):
    other = Store.from_tensors(tmp_path / "other", torch.randn(4096, 16), dtype="float32")
    with pytest.raises(UsageError, match="are not those that the configuration names"):
        train_run(make_config(), other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_refused_folder_is_left_as_it_was(make_config, store, tmp_path):
    for name in ("thesis.writing", "deep/chapter.writing"):
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        train_run(make_config(), store, tmp_path / "home")
    assert (tmp_path / "home" / "thesis.writing").exists()
    assert (tmp_path / "home" / "deep" / "chapter.writing").exists()


def test_metrics_that_are_shorter_than_the_checkpoint_says_are_refused(make_config, store, tmp_path):
    with pytest.raises(Interrupted):
        train_run(make_config(), store, tmp_path / "run", stop=StopAfter(12))
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"cut")
    with pytest.raises(SaelabError, match=r"metrics\.jsonl has 3 bytes, but"):
        train_run(make_config(), store, tmp_path / "run")


def test_a_width_that_does_not_fit_is_refused_with_the_largest_that_does(make_config, store):
    from saelab.training.memory import plan_training

    with pytest.raises(SaelabError, match=r"largest width that fits is [1-9]"):
        plan_training({"run": make_config(width=10**9)}, StoreSource(store))


def test_a_configuration_survives_json_and_unknown_fields_are_refused(make_config):
    config = make_config()
    raw = json.loads(json.dumps(config.to_json()))
    assert train_config_from_json(raw, "config.json") == config
    with pytest.raises(UsageError, match=r"config\.json has unknown fields: learning_rate; known: recipe"):
        train_config_from_json(raw | {"learning_rate": 1}, "config.json")
    raw.pop("lr")
    with pytest.raises(UsageError, match=r"config\.json lacks lr"):
        train_config_from_json(raw, "config.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recipe", 5),
        ("recipe", {"name": ["topk"]}),
        ("recipe", {"name": "topk", "k": True}),
        ("width", "x"),
        ("tokens", "3M"),
        ("batch", 64.5),
        ("seed", "a"),
        ("checkpoint_every", 2.5),
        ("normalisation", "foo"),
        ("schedule", {"warmup_share": None, "decay_share": 0.1}),
        ("dead", []),
    ],
)
def test_a_value_of_the_wrong_type_is_one_error_that_names_the_field(make_config, field, value):
    with pytest.raises(UsageError, match=field):
        train_config_from_json(make_config().to_json() | {field: value}, "config.json")


def test_an_unknown_recipe_and_option_name_the_known_ones(make_config):
    raw = make_config().to_json()
    with pytest.raises(UsageError, match="recipe 'topj' is unknown; known: "):
        train_config_from_json(raw | {"recipe": {"name": "topj"}}, "config.json")
    with pytest.raises(UsageError, match="recipe topk has unknown fields: kk; known: k"):
        train_config_from_json(raw | {"recipe": {"name": "topk", "k": 4, "kk": 1}}, "config.json")
