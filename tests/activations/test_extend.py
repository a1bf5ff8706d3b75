"""A store that is asked for more tokens grows; what it holds already is taken over."""

import os
import shutil
from dataclasses import replace

import pytest
from activation_helpers import RESID_0, RESID_1, data_files

from saelab.activations.harvest import Harvester
from saelab.activations.store import Store
from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.storage.inspect import verify_folder
from saelab.text.spec import TextSpec

OPTIONS = {"at": (RESID_0, RESID_1), "gradients": True, "mask_norm_ratio": 1.6, "shard_rows": 128}
FEW, MANY = 330, 600


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture
def expected(make_store, tmp_path):
    return data_files(make_store(tmp_path / "straight", tokens=MANY, **OPTIONS).path)


@pytest.fixture
def harvested(monkeypatch):
    """Numbers of the batches that were computed."""
    batches, real = [], Harvester.harvest

    def harvest(self, batch):
        batches.append(batch)
        return real(self, batch)

    monkeypatch.setattr(Harvester, "harvest", harvest)
    return batches


def test_an_extended_store_equals_one_that_was_cached_at_once(make_store, tmp_path, expected, harvested):
    few = make_store(tmp_path / "s", tokens=FEW, **OPTIONS)
    n_whole_shards = len(few.manifest.content["shards"]) - 1
    identity = few.identity
    harvested.clear()
    many = make_store(tmp_path / "s", tokens=MANY, **OPTIONS)
    assert data_files(many.path) == expected
    assert harvested[0] == 2 * n_whole_shards > 2  # shards of two batches
    assert many.extended_from == (identity,)
    assert Store.open(tmp_path / "straight").extended_from == ()
    assert many.identity == Store.open(tmp_path / "straight").identity != identity
    assert verify_folder(many.path).problems == []


@pytest.mark.parametrize("n_more", [1, 2, 15, 16, 33])
def test_any_growth_gives_the_same_bytes(make_store, tmp_path, n_more):
    options = {"shard_rows": 64, "loss": True}
    make_store(tmp_path / "s", tokens=200, **options)
    make_store(tmp_path / "s", tokens=200 + n_more, **options)
    straight = make_store(tmp_path / "straight", tokens=200 + n_more, **options)
    assert data_files(tmp_path / "s") == data_files(straight.path)


def test_an_unfinished_store_is_extended_too(make_store, tmp_path, monkeypatch, expected, harvested):
    real = Harvester.harvest

    def die_at_2(self, batch):
        if batch == 2:
            raise Crash
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Harvester, "harvest", die_at_2)
        with pytest.raises(Crash):
            make_store(tmp_path / "s", tokens=FEW, **OPTIONS)
    harvested.clear()
    store = make_store(tmp_path / "s", tokens=MANY, **OPTIONS)
    assert data_files(store.path) == expected
    assert harvested[0] == 2
    assert store.extended_from == ()


def test_a_crash_while_extending_leaves_the_old_store_or_an_unfinished_one(
    make_store, tmp_path, monkeypatch, harvested
):
    options = {"at": (RESID_0, RESID_1), "loss": True, "shard_rows": 64}
    expected = data_files(make_store(tmp_path / "straight", tokens=130, **options).path)
    old = data_files(make_store(tmp_path / "old", tokens=70, **options).path)
    real, calls, crash_at = os.replace, [0], [0]

    def replace(*paths):
        calls[0] += 1
        if calls[0] == crash_at[0]:
            raise Crash
        return real(*paths)

    monkeypatch.setattr("saelab.storage.files.os.replace", replace)
    shutil.copytree(tmp_path / "old", tmp_path / "s")
    make_store(tmp_path / "s", tokens=130, **options)
    n_calls, complete = calls[0], set()
    for number in range(1, n_calls + 1):
        out = shutil.copytree(tmp_path / "old", tmp_path / f"crash {number}")
        calls[0], crash_at[0] = 0, number
        with pytest.raises(Crash):
            make_store(out, tokens=130, **options)
        try:
            Store.open(out)
        except DamagedFileError:
            pass
        else:
            complete.add(number)
            found = data_files(out)
            assert {name: found[name] for name in found if not name.endswith(".writing")} == old
        harvested.clear()
        make_store(out, tokens=130, **options)
        assert data_files(out) == expected, number
    assert harvested == []  # only the manifest was missing
    assert complete == {1, 2}  # while the history is written, and before the manifest is moved away


def test_a_store_does_not_shrink(make_store, tmp_path):
    store = make_store(tmp_path / "s")
    before = data_files(store.path)
    with pytest.raises(UsageError, match="was made with 600 tokens and cannot shrink to 599"):
        make_store(tmp_path / "s", tokens=599)
    assert data_files(store.path) == before


def test_a_damaged_shard_that_is_taken_over_is_made_again(make_store, tmp_path, expected):
    store = make_store(tmp_path / "s", tokens=FEW, **OPTIONS)
    for name in ("hooks/model.layers.1.output/shard-000000.safetensors", "loss.bin"):
        content = bytearray((store.path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (store.path / name).write_bytes(content)
    make_store(tmp_path / "s", tokens=MANY, **OPTIONS)
    assert data_files(tmp_path / "s") == expected


def test_a_full_disk_leaves_the_old_store(make_store, tmp_path, monkeypatch):
    store = make_store(tmp_path / "s", tokens=FEW)
    before = data_files(store.path)
    usage = type("Usage", (), {"free": 5000})
    monkeypatch.setattr("saelab.storage.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(
        SaelabError, match=r"only 5,000 are free; free some space, or ask for \d+ tokens"
    ) as error:
        make_store(tmp_path / "s", tokens=MANY)
    fits = int(str(error.value).rsplit(" tokens")[0].rsplit(" ")[-1])
    assert FEW - 128 < fits < MANY
    assert data_files(store.path) == before


def test_only_as_much_text_is_read_and_hashed_as_is_needed(make_store, tmp_path, corpus):
    path = tmp_path / "text.jsonl"
    lines = corpus.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + "what is never read need not be JSON\n")
    text = TextSpec(source=str(path), heldout_share=0.25)
    make_store(tmp_path / "s", text=text, tokens=100)
    path.write_text("".join(lines))
    make_store(tmp_path / "s", text=text, tokens=100)
    make_store(tmp_path / "s", text=text, tokens=150)
    assert data_files(tmp_path / "s") == data_files(make_store(tmp_path / "t", text=text, tokens=150).path)


def test_where_model_and_text_lay_is_no_part_of_the_identity(make_store, make_config, tmp_path):
    """Copies of model and text in another place give a store of the same identity."""
    here = make_store(tmp_path / "here")
    place = tmp_path / "elsewhere"
    place.mkdir()
    moved = shutil.copy(make_config().text.source, place / "corpus.jsonl")
    there = make_store(tmp_path / "there", text=replace(make_config().text, source=str(moved)))
    assert here.identity == there.identity
