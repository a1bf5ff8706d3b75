import os

import pytest
from activation_helpers import RESID_0, RESID_1, data_files

from saelab.activations import layout, request, shard_writer
from saelab.activations.cache import cache_activations
from saelab.activations.harvest import Harvester
from saelab.activations.store import Store
from saelab.errors import DamagedFileError, Interrupted, SaelabError
from saelab.interrupts import StopRequest
from saelab.storage.inspect import verify_folder
from saelab.storage.lock import locked

OPTIONS = {"tokens": 260, "at": (RESID_0, RESID_1), "gradients": True, "mask_norm_ratio": 1.5}


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture
def expected(make_store, tmp_path):
    return data_files(make_store(tmp_path / "expected", **OPTIONS).path)


def crash_at(monkeypatch, name: str, number: int) -> list[int]:
    """Let the call of that number to `os.replace` or `os.fsync` end the process; return a count of calls."""
    calls = [0]
    real = getattr(os, name)

    def call(*args):
        calls[0] += 1
        if calls[0] == number:
            raise Crash
        return real(*args)

    monkeypatch.setattr(f"saelab.storage.files.os.{name}", call)
    return calls


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_crash_at_any_write_is_made_good_by_the_same_call(make_store, tmp_path, monkeypatch, name):
    options = {"tokens": 100, "at": (RESID_0, RESID_1), "shard_rows": 64, "loss": True}
    with monkeypatch.context() as patch:
        calls = crash_at(patch, name, number=0)
        expected = data_files(make_store(tmp_path / "count", **options).path)
    n_calls = calls[0]
    assert n_calls >= len(expected) > 8
    # Every write syncs its file, and then the folder: that is before the next write's rename.
    for number in [*range(1, n_calls, 2 if name == "fsync" else 1), n_calls]:
        out = tmp_path / f"crash {number}"
        with monkeypatch.context() as patch:
            crash_at(patch, name, number)
            with pytest.raises(Crash):
                make_store(out, **options)
        is_last_sync = name == "fsync" and number == n_calls
        if not is_last_sync:  # the sync of the folder behind the manifest's rename: the store is complete
            with pytest.raises(DamagedFileError):
                Store.open(out)
        make_store(out, **options)
        assert data_files(out) == expected, f"{name} {number}"


def test_a_crash_while_a_store_is_rebuilt_is_made_good_too(make_store, tmp_path, monkeypatch, expected):
    out = make_store(tmp_path / "s", **OPTIONS).path
    shard = "hooks/model.layers.1.output/shard-000001.safetensors"
    for number in range(1, 6):
        (out / shard).unlink()
        with monkeypatch.context() as patch:
            crash_at(patch, "replace", number)
            with pytest.raises(Crash):
                make_store(out, **OPTIONS)
        if number > 1:  # the first is that of the manifest, which is moved away
            with pytest.raises(DamagedFileError):
                Store.open(out)
        make_store(out, **OPTIONS)
        assert data_files(out) == expected


@pytest.mark.parametrize(("patience", "shards"), [(float("inf"), 1), (0.0, 0)])
def test_a_stop_ends_a_shard_that_is_soon_done_and_drops_a_long_one(
    make_config, tmp_path, lm, monkeypatch, expected, patience, shards
):
    stop, harvested = StopRequest(), []
    real = Harvester.harvest

    def harvest_and_ask(self, batch):
        harvested.append(batch)
        if batch == 1:  # the second of the first shard's three
            stop.ask()
        return real(self, batch)

    config = make_config(**OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(Harvester, "harvest", harvest_and_ask)
        patch.setattr(shard_writer, "PATIENCE_SECONDS", patience)
        with pytest.raises(
            Interrupted, match=r"stopped after \d+ of 260 rows; run the same command to go on"
        ):
            cache_activations(config, tmp_path / "s", progress=False, lm=lm, stop=stop)
    assert harvested == ([0, 1, 2] if shards else [0, 1])
    found = {path.name for path in (tmp_path / "s").rglob("hooks/*/*")}
    assert found == {f"shard-{number:06d}.safetensors" for number in range(shards)}
    cache_activations(config, tmp_path / "s", progress=False, lm=lm)
    assert data_files(tmp_path / "s") == expected


def test_a_stop_while_finishing_is_made_good_too(make_config, tmp_path, lm, monkeypatch, expected):
    stop = StopRequest()
    real = layout.write_array

    def write_and_ask(path, array):
        stop.ask()
        real(path, array)

    config = make_config(**OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(layout, "write_array", write_and_ask)
        with pytest.raises(Interrupted, match="stopped while finishing; run the same command to go on"):
            cache_activations(config, tmp_path / "s", progress=False, lm=lm, stop=stop)
    cache_activations(config, tmp_path / "s", progress=False, lm=lm)
    assert data_files(tmp_path / "s") == expected


def test_only_missing_shards_are_computed_again(make_store, tmp_path, monkeypatch, expected):
    out = make_store(tmp_path / "s", **OPTIONS).path
    (out / "hooks/model.layers.0.output/shard-000001.safetensors").unlink()
    harvested = []
    real = Harvester.harvest
    monkeypatch.setattr(
        Harvester, "harvest", lambda self, batch: (harvested.append(batch), real(self, batch))[1]
    )
    make_store(out, **OPTIONS)
    assert harvested == [3, 4, 5]
    assert data_files(out) == expected


@pytest.fixture
def unfinished(make_store, tmp_path, monkeypatch):
    """A store of which only the finishing is missing."""
    with monkeypatch.context() as patch:
        patch.setattr("saelab.activations.finish.write_manifest", None)
        with pytest.raises(TypeError):
            make_store(tmp_path / "s", **OPTIONS)
    return tmp_path / "s"


@pytest.mark.parametrize("damage", ["cut", "header", "activation", "tokens", "losses", "record"])
def test_an_unsound_shard_of_an_unfinished_store_is_written_again(
    make_config, lm, unfinished, expected, capsys, damage
):
    path = {
        "losses": unfinished / "unfinished/loss-000000.safetensors",
        "record": unfinished / "unfinished/shard-000000.json",
    }.get(damage, unfinished / "hooks/model.layers.0.output/shard-000000.safetensors")
    content = bytearray(path.read_bytes())
    place = {
        "header": 3,
        "activation": 4096,
        "tokens": -8,
        "losses": -1,
        "record": content.find(b"blake2b") + 11,
    }
    if damage == "cut":
        content = content[:-1]
    else:
        content[place[damage]] ^= 0x40 if damage == "header" else 1
    path.write_bytes(content)
    cache_activations(make_config(**OPTIONS), unfinished, lm=lm)
    assert data_files(unfinished) == expected
    is_seen_at_once = damage in ("cut", "header")
    assert ("damaged since it was written" in capsys.readouterr().err) != is_seen_at_once


@pytest.mark.parametrize("name", ["tokens.bin", "keep.bin", "documents.parquet", "loss.bin"])
def test_a_missing_file_of_a_finished_store_is_written_again(make_store, tmp_path, expected, name):
    out = make_store(tmp_path / "s", **OPTIONS).path
    (out / name).unlink()
    make_store(out, **OPTIONS)
    assert data_files(out) == expected


def test_another_number_of_threads_cannot_finish_a_store(make_store, tmp_path, monkeypatch):
    out = make_store(tmp_path / "s").path
    monkeypatch.setattr(request.torch, "get_num_threads", lambda: 99)
    make_store(out)  # a finished one is only read
    with pytest.raises(SaelabError, match=r"threads: 1 there, 99 now.*OMP_NUM_THREADS"):
        make_store(out, tokens=700)
    (out / "manifest.json").unlink()
    with pytest.raises(SaelabError, match=r"threads: 1 there, 99 now.*OMP_NUM_THREADS"):
        make_store(out)


def test_a_folder_in_use_is_refused(make_store, tmp_path):
    with locked(tmp_path / "s", "testing"), pytest.raises(SaelabError, match="in use by another process"):
        make_store(tmp_path / "s")


def test_a_full_disk_is_one_error_and_nothing_looks_complete(make_store, tmp_path, monkeypatch):
    def no_space(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("saelab.storage.files.os.fsync", no_space)
        with pytest.raises(SaelabError, match="No space left on device"):
            make_store(tmp_path / "s")
    assert data_files(tmp_path / "s") == {}
    make_store(tmp_path / "s")


def test_a_flipped_bit_in_any_file_is_found(make_store, tmp_path):
    store = make_store(tmp_path / "s", loss=True)
    assert verify_folder(store.path).problems == []
    for name in store.manifest.files:
        path = store.path / name
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 0x10
        path.write_bytes(flipped)
        (problem,) = verify_folder(store.path).problems
        assert str(path) in problem
        path.write_bytes(content)


def test_a_missing_or_cut_shard_says_how_to_rebuild_only_it(make_store, tmp_path):
    store = make_store(tmp_path / "s")
    name = "hooks/model.layers.0.output/shard-000001.safetensors"
    content = (store.path / name).read_bytes()
    for damaged in (content[:-4], None):
        if damaged is None:
            (store.path / name).unlink()
        else:
            (store.path / name).write_bytes(damaged)
        with (
            Store.open(store.path) as opened,
            pytest.raises(DamagedFileError, match=f"delete {name} and run") as e,
        ):
            opened.rows(None, "train", 0, opened.n_rows(None, "train"))
        assert ("missing" if damaged is None else f"{len(content):,}") in str(e.value)
    make_store(store.path)
    assert data_files(store.path) == data_files(make_store(tmp_path / "t").path)
