"""A run made longer equals one that was planned so from the start, and the shorter one is kept."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from training_helpers import SimulatedCrash, StopAfter, data_files, train_run

from saelab.activations.source import StoreSource
from saelab.errors import Interrupted, SaelabError, UsageError
from saelab.storage import files
from saelab.storage.inspect import verify_folder
from saelab.training import group as groups
from saelab.training import single
from saelab.training.checkpoints import finished_checkpoints
from saelab.training.config import Schedule
from saelab.training.grid import Grid, lengths_in, make_configs, with_lengths
from saelab.training.optimiser import lr_factor
from saelab.training.passes import HowToTrain
from saelab.training.run import Run

SHORT, LONG = 24 * 64, 40 * 64


@pytest.fixture
def planned(make_config, store, tmp_path):
    """The files of a run that was told of both lengths from the start."""
    train_run(make_config().extended(LONG), store, tmp_path / "planned")
    return outcome(tmp_path / "planned")


def outcome(folder):
    """Data files without checkpoints and earlier lengths."""
    return {
        name: content
        for name, content in data_files(folder).items()
        if not name.startswith(("checkpoints", "lengths"))
    }


def test_the_learning_rate_of_an_extended_run_has_a_closed_form(make_config):
    schedule = Schedule(warmup_share=0.25, decay_share=0.5)
    short = make_config(steps=24, schedule=schedule)
    long = short.extended(40 * 64)
    assert long.branch_steps == (12, 20)
    for step in range(12):
        assert lr_factor(step, long) == lr_factor(step, short) == min(1.0, (step + 1) / 6)
    assert [lr_factor(step, long) for step in range(12, 21)] == [1.0] * 9
    assert [lr_factor(step, long) for step in range(20, 40)] == [(40 - s) / 20 for s in range(20, 40)]


@pytest.mark.parametrize("looks", [None, 3, 19])
def test_an_extended_run_equals_one_of_that_length_bit_for_bit(make_config, store, tmp_path, planned, looks):
    if looks is None:
        train_run(make_config(), store, tmp_path / "run")
    else:  # also one that was interrupted before it was extended, before and after the branch point
        with pytest.raises(Interrupted):
            train_run(make_config(), store, tmp_path / "run", stop=StopAfter(looks))
    run = train_run(make_config().extended(LONG), store, tmp_path / "run")
    assert run.config.lengths == (SHORT, LONG)
    assert outcome(tmp_path / "run") == planned
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps))
    assert steps[-1] == 40


def test_the_shorter_run_is_kept_whole(make_config, store, tmp_path):
    train_run(make_config(), store, tmp_path / "run")
    (tmp_path / "run" / "evaluations").mkdir()
    (tmp_path / "run" / "evaluations" / "heldout.json").write_text("{}")
    before = outcome(tmp_path / "run")
    train_run(make_config().extended(LONG), store, tmp_path / "run")
    kept = tmp_path / "run" / "lengths" / f"tokens-{SHORT}"
    after = data_files(kept)
    assert {k: v for k, v in after.items() if k != "manifest.json"} == {
        k: v for k, v in before.items() if k != "manifest.json"
    }
    assert verify_folder(tmp_path / "run").problems == []
    assert not (tmp_path / "run" / "evaluations").exists(), "they tell of another SAE"
    old = Run.open(kept)
    assert old.config == make_config()
    assert old.store_path == store.path.resolve()
    assert torch.isfinite(old.sae().W_dec).all()


def test_a_run_can_be_extended_twice_and_is_then_finished(make_config, store, tmp_path):
    once = make_config().extended(LONG)
    twice = once.extended(60 * 64)
    train_run(make_config(), store, tmp_path / "run")
    train_run(once, store, tmp_path / "run")
    train_run(twice, store, tmp_path / "run")
    train_run(twice, store, tmp_path / "straight")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")
    before = data_files(tmp_path / "run")
    train_run(twice, store, tmp_path / "run")
    assert data_files(tmp_path / "run") == before


def test_a_crash_at_every_write_of_an_extension_is_mended_by_the_same_call(
    make_config, store, tmp_path, monkeypatch, unchecked
):
    config = make_config(steps=6, checkpoint_every=3)
    longer = config.extended(9 * 64)
    train_run(config, store, tmp_path / "short")
    real = files.os.replace
    left = {"writes": None, "seen": 0}

    def crashing(*arguments):
        left["seen"] += 1
        if left["writes"] is not None:
            left["writes"] -= 1
            if left["writes"] < 0:
                raise SimulatedCrash
        return real(*arguments)

    monkeypatch.setattr(files.os, "replace", crashing)
    shutil.copytree(tmp_path / "short", tmp_path / "counted")
    left["seen"] = 0
    train_run(longer, store, tmp_path / "counted")
    total, straight = left["seen"], data_files(tmp_path / "counted")
    assert total > 15
    for crash_at in range(total):
        folder = tmp_path / f"crash-{crash_at}"
        shutil.copytree(tmp_path / "short", folder)
        left["writes"] = crash_at
        with pytest.raises(SimulatedCrash):
            train_run(longer, store, folder)
        left["writes"] = None
        train_run(longer, store, folder)
        assert data_files(folder) == straight, f"crash at write {crash_at}"
        shutil.rmtree(folder)


def test_a_run_without_its_branch_point_cannot_be_extended_and_is_left_as_it_was(
    make_config, store, tmp_path
):
    train_run(make_config(), store, tmp_path / "run")
    branch = tmp_path / "run" / "checkpoints" / "step-000017"
    shutil.rmtree(branch)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000015")
    before = data_files(tmp_path / "run")
    with pytest.raises(UsageError, match=r"no checkpoint at step 17 .* --init-from"):
        train_run(make_config().extended(LONG), store, tmp_path / "run")
    assert data_files(tmp_path / "run") == before
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UsageError, match=r"no checkpoint at step 17 .* --init-from"):
        train_run(make_config().extended(LONG), store, tmp_path / "run")


def test_a_refused_extension_leaves_everything_as_it_was(make_config, store, tmp_path, monkeypatch):
    source, how = StoreSource(store), HowToTrain(quiet=True)
    both = [replace(make_config(), seed=seed) for seed in (0, 1)]
    train_run(both[0], store, tmp_path / "run")
    groups.train_group(both, source, tmp_path / "group", how)
    before = data_files(tmp_path)
    longer = [config.extended(LONG) for config in both]

    def refused(match):
        for extend in (
            lambda: train_run(longer[0], store, tmp_path / "run"),
            lambda: groups.train_group(longer, source, tmp_path / "group", how),
        ):
            with pytest.raises(SaelabError, match=match):
                extend()
            assert data_files(tmp_path) == before

    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        refused("--resume plain")
    finally:
        torch.set_num_threads(threads)
    no_room = SaelabError("no room")

    def full(*_):
        raise no_room

    for module in (groups, single):
        monkeypatch.setattr(module, "require_free_space", full)
    refused("no room")


def test_other_options_are_not_changed_by_an_extension(make_config, store, tmp_path):
    train_run(make_config(), store, tmp_path / "run")
    with pytest.raises(UsageError, match=r"recipe\.k: 4 there, 5 now"):
        train_run(make_config(k=5).extended(LONG), store, tmp_path / "run")
    with pytest.raises(UsageError, match="can be extended to more, not to"):
        make_config().extended(SHORT)


def test_defaults_follow_the_first_length(store):
    source, first, second = StoreSource(store), 4_000 * 64, 8_000 * 64

    def make(tokens):
        return make_configs(source, Grid(widths=(48,), k=(4,)), tokens=tokens, batch=64)

    (short,) = with_lengths((), first, make)
    (longer,) = with_lengths(short.lengths, second, make)
    assert longer == short.extended(second)
    assert longer.lr == short.lr != make(second)[0].lr
    assert with_lengths(longer.lengths, second, make) == [longer]
    (less,) = with_lengths(longer.lengths, first, make)
    assert less == short, "a smaller number is another run, which the folder refuses"


def test_a_group_is_extended_with_all_its_members(make_config, store, tmp_path):
    source, how = StoreSource(store), HowToTrain(quiet=True)
    short = [replace(make_config(), seed=seed) for seed in (0, 1)]
    groups.train_group(short, source, tmp_path / "group", how)
    longer = [config.extended(LONG) for config in short]
    group = groups.train_group(longer, source, tmp_path / "group", how)
    assert lengths_in(tmp_path / "group") == (SHORT, LONG)
    for name, config in group.members.items():
        train_run(config, store, tmp_path / "alone" / name)
        found, expected = outcome(tmp_path / "group" / name), outcome(tmp_path / "alone" / name)
        assert {k: v for k, v in found.items() if k != "manifest.json"} == {
            k: v for k, v in expected.items() if k != "manifest.json"
        }
        assert Run.open(tmp_path / "group" / name / "lengths" / f"tokens-{SHORT}").config.tokens == SHORT
    assert len(finished_checkpoints(tmp_path / "group" / "checkpoints" / "pass-000")) >= 3
