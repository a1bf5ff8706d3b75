"""Several SAEs on one pass: each equals the same SAE alone, bit for bit, whatever happens to the group."""

import json
import shutil
from dataclasses import replace
from itertools import count

import pytest
import torch
from training_helpers import SimulatedCrash, StopAfter, data_files

from saelab.activations.own import OwnBatch
from saelab.activations.source import StoreSource
from saelab.activations.store import Store
from saelab.activations.stream import StoreStream
from saelab.errors import DamagedFileError, Interrupted, SaelabError, UsageError
from saelab.storage import files
from saelab.storage.inspect import list_folders, verify_folder
from saelab.storage.tensors import read_tensors
from saelab.training import group as groups
from saelab.training import memory
from saelab.training.checkpoints import finished_checkpoints
from saelab.training.group import Group, plan_group
from saelab.training.member import Member
from saelab.training.passes import HowToTrain
from saelab.training.recipes.topk import TopK
from saelab.training.single import train_run

NAMES = [f"topk-{shape}-s{seed}-lr0.01" for shape in ("k4-f48", "k6-f32") for seed in (0, 1)]


@pytest.fixture
def configs(make_config):
    """Two shapes, two seeds."""
    base = make_config()
    shapes = [(TopK(k=4), 48), (TopK(k=6), 32)]
    return [
        replace(base, recipe=recipe, width=width, seed=seed) for recipe, width in shapes for seed in (0, 1)
    ]


def train_group(configs, store, folder, **how):
    return groups.train_group(configs, StoreSource(store), folder, HowToTrain(quiet=True, **how))


def group_files(folder):
    """Data files without the checkpoints, which lie elsewhere in a run of its own, and without the manifest,
    which names the store by a path relative to it."""
    return {
        name: content
        for name, content in data_files(folder).items()
        if not name.startswith("checkpoints") and name != "manifest.json"
    }


@pytest.fixture
def alone(configs, store, tmp_path):
    """The files of each SAE trained by itself."""
    result = {}
    for name, config in zip(NAMES, configs, strict=True):
        folder = tmp_path / "alone" / name
        train_run(config, StoreSource(store), folder, HowToTrain(quiet=True))
        result[name] = group_files(folder)
    return result


def test_a_member_equals_the_same_sae_trained_alone_bit_for_bit(configs, store, tmp_path, alone):
    group = train_group(configs, store, tmp_path / "group")
    assert list(group.members) == NAMES
    assert group.passes == (tuple(NAMES),)
    for name in NAMES:
        assert group_files(tmp_path / "group" / name) == alone[name], name
    assert Group.open(tmp_path / "group") == group
    assert list(group.finished) == NAMES
    assert verify_folder(tmp_path / "group").problems == []


def test_the_state_of_all_members_is_one_checkpoint(configs, store, tmp_path):
    train_group(configs, store, tmp_path / "group")
    places = finished_checkpoints(tmp_path / "group" / "checkpoints" / "pass-000")
    assert [place.name for place in places] == [f"step-{n:06d}" for n in (15, 17, 20, 24)]
    assert {path.stem for path in places[0].glob("*.safetensors")} == set(NAMES)


@pytest.mark.parametrize("looks", [0, 7, 23])
def test_a_group_that_is_stopped_and_resumed_ends_with_the_same_bits(configs, store, tmp_path, alone, looks):
    with pytest.raises(Interrupted, match="the same command goes on"):
        train_group(configs, store, tmp_path / "group", stop=StopAfter(looks))
    train_group(configs, store, tmp_path / "group")
    for name in NAMES:
        assert group_files(tmp_path / "group" / name) == alone[name], name


def test_memory_decides_how_many_passes_there_are_and_not_the_bits(
    configs, store, tmp_path, alone, monkeypatch
):
    source = StoreSource(store)
    one = memory.plan_training({"one": configs[0]}, source).memory_bytes
    all_four = memory.plan_training(dict(zip(NAMES, configs, strict=True)), source)
    assert all_four.passes == (tuple(NAMES),)
    monkeypatch.setattr(
        memory, "available_memory_bytes", lambda device="cpu": (one + all_four.memory_bytes) // 2
    )
    _, todo = plan_group(configs, source)
    group = train_group(configs, store, tmp_path / "group")
    assert len(group.passes) == 2
    assert todo == group.passes
    for name in NAMES:
        assert group_files(tmp_path / "group" / name) == alone[name], name


def test_new_values_add_members_and_train_only_those(configs, store, tmp_path, alone):
    train_group(configs[:2], store, tmp_path / "group")
    before = {name: data_files(tmp_path / "group" / name) for name in NAMES[:2]}
    group = train_group(configs, store, tmp_path / "group")
    assert group.passes == (tuple(NAMES[:2]), tuple(NAMES[2:]))
    assert {name: data_files(tmp_path / "group" / name) for name in NAMES[:2]} == before
    for name in NAMES:
        assert group_files(tmp_path / "group" / name) == alone[name], name
    fewer = train_group(configs[:1], store, tmp_path / "group")
    assert fewer == group, "asking for fewer takes nothing away"


def test_a_member_that_diverges_is_parked_and_the_others_go_on(configs, store, tmp_path, alone):
    wild = replace(configs[0], lr=40.0, checkpoint_every=1)
    others = [replace(config, checkpoint_every=1) for config in configs[1:3]]
    group = train_group([wild, *others], store, tmp_path / "group")
    (name,) = group.parked
    assert name == "topk-k4-f48-s0-lr40"
    assert "diverged by step" in group.parked[name]
    assert not (tmp_path / "group" / name / "manifest.json").exists()
    facts = json.loads((tmp_path / "group" / name / "parked.json").read_text())
    assert facts["reason"] == group.parked[name]
    state = read_tensors(tmp_path / "group" / name / "last_good.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert sorted(group.finished) == sorted(set(group.members) - {name})
    for other in group.finished:
        for part in ("sae/weights.safetensors", "metrics.jsonl"):
            assert (tmp_path / "group" / other / part).read_bytes() == alone[other][part]
    again = train_group([wild, *others], store, tmp_path / "group")
    assert again == group, "a diverged member is not trained again"


def test_a_group_whose_every_member_diverges_fails_in_one_line(configs, store, tmp_path):
    wild = [replace(config, lr=1e4) for config in configs[:2]]
    with pytest.raises(SaelabError, match=r"every SAE of the group has diverged .* lower learning rates"):
        train_group(wild, store, tmp_path / "group")


def test_a_pass_that_diverges_whole_does_not_stop_the_others(configs, store, tmp_path, alone):
    train_group(configs[:1], store, tmp_path / "group")
    with_wild = [configs[0], replace(configs[0], lr=1e4)]
    group = train_group(with_wild, store, tmp_path / "group")
    assert list(group.parked) == ["topk-k4-f48-s0-lr10000"]
    group = train_group([*with_wild, configs[1]], store, tmp_path / "group")
    assert sorted(group.finished) == NAMES[:2]
    for name in NAMES[:2]:
        assert group_files(tmp_path / "group" / name) == alone[name], name
    assert verify_folder(tmp_path / "group").problems == []


def test_a_member_that_diverged_late_has_another_chance_in_a_longer_run(
    configs, store, tmp_path, monkeypatch
):
    """Parked after the branch point, so that the longer run goes on from a state that was good."""
    real = Member.divergence

    def after_the_branch(self, line):
        if self.config.seed == 0 and self.config.tokens == configs[0].tokens and self.step > 17:
            return "diverged for the test"
        return real(self, line)

    monkeypatch.setattr(Member, "divergence", after_the_branch)
    group = train_group(configs[:2], store, tmp_path / "group")
    assert list(group.parked) == NAMES[:1]
    longer = [config.extended(40 * 64) for config in configs[:2]]
    group = train_group(longer, store, tmp_path / "group")
    assert group.parked == {}
    assert sorted(group.finished) == NAMES[:2]
    assert not (tmp_path / "group" / NAMES[0] / "parked.json").exists()
    train_run(longer[0], StoreSource(store), tmp_path / "alone", HowToTrain(quiet=True))
    weights = "sae/weights.safetensors"
    assert (tmp_path / "group" / NAMES[0] / weights).read_bytes() == (
        tmp_path / "alone" / weights
    ).read_bytes()


def test_a_refused_member_leaves_the_group_as_it_was(configs, make_config, tmp_path):
    x = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    batches = [OwnBatch({"good": x, "constant": torch.ones(3000, 8)}, torch.arange(3000) // 10)]
    store = Store.from_batches(tmp_path / "store", batches, dtype="float32")
    base = replace(make_config(), source_identity=store.identity, width=24, hook="good")
    train_group([base], store, tmp_path / "group")
    before = data_files(tmp_path / "group")
    with pytest.raises(SaelabError, match="constant: there is nothing to learn"):
        train_group([base, replace(base, hook="constant")], store, tmp_path / "group")
    assert data_files(tmp_path / "group") == before


def test_a_member_cannot_be_trained_as_a_run_of_its_own_in_its_folder(configs, store, tmp_path):
    with pytest.raises(Interrupted):
        train_group(configs, store, tmp_path / "group", stop=StopAfter(7))
    before = data_files(tmp_path / "group")
    with pytest.raises(UsageError, match="belongs to the group"):
        train_run(configs[0], StoreSource(store), tmp_path / "group" / NAMES[0], HowToTrain(quiet=True))
    assert data_files(tmp_path / "group") == before


def test_a_group_that_is_to_be_extended_is_planned_with_its_own_members(configs, store, tmp_path):
    source = StoreSource(store)
    train_group(configs[:2], store, tmp_path / "group")
    longer = [config.extended(40 * 64) for config in configs]
    group, todo = plan_group(longer, source, tmp_path / "group")
    assert list(group.members) == NAMES
    assert todo == (tuple(NAMES[:2]), tuple(NAMES[2:]))
    assert {config.steps for config in group.members.values()} == {40}
    assert plan_group(configs[:2], source, tmp_path / "group")[1] == ()


def test_nan_at_a_hook_that_nobody_trains_on_any_more_stops_nobody(make_config, tmp_path, monkeypatch):
    x = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    batches = [OwnBatch({"a": x, "b": x}, torch.arange(3000) // 10)]
    store = Store.from_batches(tmp_path / "store", batches, dtype="float32")
    base = replace(make_config(), source_identity=store.identity, width=24)
    real = Member.divergence
    monkeypatch.setattr(
        Member,
        "divergence",
        lambda self, line: "diverged" if self.config.hook == "b" else real(self, line),
    )
    real_next = StoreStream.next

    def poisoned(self):
        batch = real_next(self)
        if self.hook.module_path == "b":
            batch.x[0, 0] = torch.nan if self.cursor > 20 * 64 else batch.x[0, 0]
        return batch

    monkeypatch.setattr(StoreStream, "next", poisoned)
    group = train_group([replace(base, hook=hook) for hook in "ab"], store, tmp_path / "group")
    assert len(group.finished) == len(group.parked) == 1


def test_another_setting_is_refused_with_the_difference(configs, store, tmp_path):
    train_group(configs[:2], store, tmp_path / "group")
    with pytest.raises(UsageError, match=r"group of another configuration \(batch: 64 there, 32 now\)"):
        train_group([replace(config, batch=32) for config in configs[:2]], store, tmp_path / "group")
    with pytest.raises(UsageError, match=r"may differ in recipe, hook, .* only, not in batch"):
        train_group([configs[0], replace(configs[1], batch=32)], store, tmp_path / "other")


def test_a_run_does_not_become_a_group_and_a_group_no_run(configs, store, tmp_path):
    source = StoreSource(store)
    train_run(configs[0], source, tmp_path / "run", HowToTrain(quiet=True))
    with pytest.raises(UsageError, match="holds a single run, which cannot become a group"):
        train_group(configs, store, tmp_path / "run")
    train_group(configs[:2], store, tmp_path / "group")
    with pytest.raises(UsageError, match="holds other files"):
        train_run(configs[0], source, tmp_path / "group", HowToTrain(quiet=True))


def test_a_group_file_that_was_changed_is_refused(configs, store, tmp_path):
    train_group(configs[:2], store, tmp_path / "group")
    place = tmp_path / "group" / "group.json"
    raw = json.loads(place.read_text())
    files.write_json(place, raw | {"members": ["../outside"]})
    with pytest.raises(DamagedFileError, match="does not have its own checksum"):
        Group.open(tmp_path / "group")
    for change in ({"version": 2}, {"format": "saelab-run"}):
        files.write_json(place, raw | change)
        with pytest.raises(DamagedFileError):
            Group.open(tmp_path / "group")


def test_members_cannot_be_named_outside_their_group(configs, store, tmp_path):
    group = train_group(configs[:2], store, tmp_path / "group")
    name = next(iter(group.members))
    for bad in ("../outside", "/etc", "checkpoints", ""):
        renamed = {bad: group.members[name]}
        Group(group.path, renamed, ((bad,),), {}).save()
        with pytest.raises(DamagedFileError, match="do not hold each member once"):
            Group.open(tmp_path / "group")


def test_a_crash_at_every_write_of_a_group_is_mended_by_the_same_call(
    configs, store, tmp_path, monkeypatch, unchecked
):
    small = [replace(config, tokens=4 * 64, checkpoint_every=2) for config in configs[:2]]
    real = files.os.replace
    left = {"writes": None}
    seen = count()

    def crashing(*arguments):
        next(seen)
        if left["writes"] is not None:
            left["writes"] -= 1
            if left["writes"] < 0:
                raise SimulatedCrash
        return real(*arguments)

    monkeypatch.setattr(files.os, "replace", crashing)
    train_group(small, store, tmp_path / "counted")
    total = next(seen)
    straight = data_files(tmp_path / "counted")
    assert total > 25
    for crash_at in range(total):
        folder = tmp_path / f"crash-{crash_at}"
        left["writes"] = crash_at
        with pytest.raises(SimulatedCrash):
            train_group(small, store, folder)
        left["writes"] = None
        train_group(small, store, folder)
        assert data_files(folder) == straight, f"crash at write {crash_at}"
        shutil.rmtree(folder)


def test_the_hooks_of_a_store_can_be_trained_on_one_pass(make_config, tmp_path):
    """A store of two hookpoints, each with a member, as alone."""
    generator = torch.Generator().manual_seed(0)
    narrow, wide = (torch.randn(3000, d, generator=generator) for d in (8, 12))
    batches = [OwnBatch({"narrow": narrow, "wide": wide}, torch.arange(3000) // 10)]
    store = Store.from_batches(tmp_path / "store", batches, dtype="float32")
    source = StoreSource(store)
    base = make_config(width=24)
    pool_rows = {source.default_pool_rows(hook) for hook in ("narrow", "wide")}
    assert len(pool_rows) == 1, "by default they can share a pass"
    base = replace(base, source_identity=store.identity, pool_rows=pool_rows.pop())
    both = [replace(base, hook=hook) for hook in ("narrow", "wide")]
    group = train_group(both, store, tmp_path / "group")
    assert list(group.members) == ["topk-k4-f24-s0-lr0.01-narrow", "topk-k4-f24-s0-lr0.01-wide"]
    for name, config in group.members.items():
        train_run(config, source, tmp_path / name, HowToTrain(quiet=True))
        assert group_files(tmp_path / "group" / name) == group_files(tmp_path / name)


def test_ls_shows_a_group_and_its_members(configs, store, tmp_path):
    train_group(configs[:2], store, tmp_path / "group")
    kinds = {str(found.path.relative_to(tmp_path)): found.kind for found in list_folders(tmp_path)}
    assert kinds == {"group": "group", f"group/{NAMES[0]}": "run", f"group/{NAMES[1]}": "run"}
