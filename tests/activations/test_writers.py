"""Several writers of one store. Threads stand for processes where order matters: locks are of open files."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from activation_helpers import RESID_0, data_files
from commands import start_python, wait_for

from saelab.activations import writer
from saelab.activations.cache import cache_activations
from saelab.activations.harvest import Harvester
from saelab.errors import Interrupted, SaelabError, UsageError
from saelab.interrupts import StopRequest
from saelab.lm.load import load_model
from saelab.lm.spec import ModelSpec
from saelab.progress import Progress
from saelab.storage.inspect import list_folders, verify_folder
from saelab.storage.lock import FolderLock, locked

OPTIONS = {"at": (RESID_0,), "shard_rows": 128, "loss": True}
LIMIT = 60.0


class Crash(BaseException):
    """The process dies here."""


class Scene:
    """One writer is held in the middle of a shard; everybody's batches and progress are written down."""

    def __init__(self, monkeypatch, hold_at: int) -> None:
        self.reached, self.go, self.waits = threading.Event(), threading.Event(), threading.Event()
        self.dies = False
        self.harvested: list[int] = []
        real = Harvester.harvest

        def harvest(harvester, batch):
            if batch == hold_at and not self.reached.is_set():
                self.reached.set()
                assert self.go.wait(LIMIT)
                if self.dies:
                    raise Crash
            self.harvested.append(batch)
            return real(harvester, batch)

        def wait(_seconds):
            self.waits.set()

        monkeypatch.setattr(Harvester, "harvest", harvest)
        monkeypatch.setattr(writer.time, "sleep", wait)


@pytest.fixture
def run(make_config, model_folder, tmp_path):
    """Cache with a model of its own, as a process of its own would."""

    def call(stop=None, **options):
        lm = load_model(ModelSpec(name=str(model_folder), device="cpu"))
        config = make_config(**(OPTIONS | options))
        return cache_activations(config, tmp_path / "s", progress=False, stop=stop, lm=lm)

    return call


@pytest.fixture
def expected(make_store, tmp_path):
    return data_files(make_store(tmp_path / "alone", **OPTIONS).path)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as threads:
        yield threads


def test_a_second_writer_works_on_while_the_first_is_in_a_shard(run, pool, monkeypatch, expected, tmp_path):
    scene = Scene(monkeypatch, hold_at=3)
    counted: dict[int, int] = {}
    advance = Progress.advance

    def count(bar, n):
        advance(bar, n)
        if bar.what == "caching":
            counted[threading.get_ident()] = bar._done

    monkeypatch.setattr(Progress, "advance", count)
    first = pool.submit(run)
    assert scene.reached.wait(LIMIT)
    second = pool.submit(run)
    assert scene.waits.wait(LIMIT)  # everything but the first's shard is written
    scene.go.set()
    assert first.result(LIMIT).identity == second.result(LIMIT).identity
    assert data_files(tmp_path / "s") == expected
    # Every batch was computed once, and each writer's progress went to the end.
    assert sorted(scene.harvested) == list(range(len(scene.harvested)))
    assert list(counted.values()) == [600, 600]


def test_the_shard_of_a_writer_that_died_is_written_by_another(run, pool, monkeypatch, expected, tmp_path):
    scene = Scene(monkeypatch, hold_at=3)
    first = pool.submit(run)
    assert scene.reached.wait(LIMIT)
    second = pool.submit(run)
    assert scene.waits.wait(LIMIT)
    scene.dies = True
    scene.go.set()
    with pytest.raises(Crash):
        first.result(LIMIT)
    second.result(LIMIT)
    assert data_files(tmp_path / "s") == expected


def test_a_writer_that_waits_for_another_can_be_stopped(run, pool, monkeypatch, expected, tmp_path):
    scene = Scene(monkeypatch, hold_at=3)
    first = pool.submit(run)
    assert scene.reached.wait(LIMIT)
    stop = StopRequest()
    second = pool.submit(run, stop)
    assert scene.waits.wait(LIMIT)
    stop.ask()
    with pytest.raises(Interrupted, match="while waiting for other writers"):
        second.result(LIMIT)
    scene.go.set()
    first.result(LIMIT)
    assert data_files(tmp_path / "s") == expected


def test_another_request_is_refused_while_a_store_is_written(run, pool, monkeypatch, expected, tmp_path):
    scene = Scene(monkeypatch, hold_at=3)
    first = pool.submit(run)
    assert scene.reached.wait(LIMIT)
    with pytest.raises(UsageError, match="context: 16 there, 15 now"):
        run(context=15)
    with pytest.raises(UsageError, match="cannot shrink to 500"):
        run(tokens=500)
    with pytest.raises(SaelabError, match="another process writes a smaller store"):
        run(tokens=700)
    with pytest.raises(SaelabError, match=r"train: .* is in use"), locked(tmp_path / "s", "train"):
        pass
    scene.go.set()
    first.result(LIMIT)
    assert data_files(tmp_path / "s") == expected


def test_a_writer_that_comes_when_all_is_done_returns_the_store(run, monkeypatch, tmp_path):
    store = run()
    with FolderLock(tmp_path / "s", "cache") as other:
        assert other.try_alone()  # whoever finishes just now
        assert run().identity == store.identity
    # A writer that died between its last two acts left the folder of the unfinished store.
    (tmp_path / "s" / "unfinished").mkdir()
    (tmp_path / "s" / "unfinished" / "shard-000000.lock").touch()
    run()
    assert not (tmp_path / "s" / "unfinished").exists()


def test_locks_and_claims_are_no_data(run, tmp_path, monkeypatch):
    monkeypatch.setattr("saelab.activations.unfinished.Unfinished.remove", lambda self: None)
    store = run()
    assert (tmp_path / "s" / "unfinished" / "shard-000000.lock").exists()
    assert not any("lock" in name or "unfinished" in name for name in store.manifest.files)
    assert verify_folder(tmp_path).problems == []
    assert [entry.kind for entry in list_folders(tmp_path)] == ["store"]


CHILD = """
import pathlib, signal, sys, time
from saelab.activations.cache import cache_activations
from saelab.activations.harvest import Harvester
from saelab.activations.spec import CacheConfig
from saelab.lm.spec import ModelSpec
from saelab.text.spec import TextSpec

model, corpus, out, hold_at = sys.argv[1:]
real = Harvester.harvest

def harvest(self, batch):
    if batch == int(hold_at):  # until it is killed
        held.touch()
        signal.pause()
    return real(self, batch)

Harvester.harvest = harvest
held = pathlib.Path(out + ".held")
while hold_at == "-1" and not held.exists():  # the one that is killed comes first
    time.sleep(0.02)
config = CacheConfig(
    model=ModelSpec(name=model, device="cpu"), text=TextSpec(source=corpus, heldout_share=0.25),
    at=("blocks.0.hook_resid_post",), tokens=600, context=16, batch_rows=4, shard_rows=128, loss=True,
)
cache_activations(config, out, progress=False)
"""


def test_kill_9_of_one_of_two_processes_loses_nothing(model_folder, corpus, run, expected, tmp_path):
    killed = start_python(CHILD, model_folder, corpus, tmp_path / "s", 3)
    other = start_python(CHILD, model_folder, corpus, tmp_path / "s", -1)
    written = tmp_path / "s/unfinished"
    n_shards = sum("hooks" in name for name in expected)
    wait_for(lambda: len(list(written.glob("*.json"))) == n_shards - 1, other)
    assert killed.poll() is None, killed.communicate()
    killed.kill()
    killed.communicate()
    assert other.wait(timeout=LIMIT) == 0, other.communicate()
    assert data_files(tmp_path / "s") == expected
