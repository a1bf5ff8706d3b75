import subprocess
import sys

import pytest

from saelab.errors import SaelabError
from saelab.storage import lock
from saelab.storage.lock import FolderLock, claimed, locked


def test_a_second_process_is_refused_at_once_and_admitted_after(tmp_path):
    script = (
        "import sys; from pathlib import Path; from saelab.storage.lock import locked; from saelab.errors import *\n"
        "try:\n    with locked(Path(sys.argv[1]), 'train'): print('free')\n"
        "except SaelabError as error: print(error)"
    )

    def other_process() -> str:
        return subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
        ).stdout

    with locked(tmp_path, "train"):
        assert "in use by another process" in other_process()
    assert other_process() == "free\n"


def test_the_lock_is_released_when_the_work_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path, "train"):
        raise ZeroDivisionError
    with locked(tmp_path, "train"):
        assert (tmp_path / ".lock").exists()


def test_a_path_that_is_a_file_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaelabError, match="train: cannot write to"), locked(tmp_path / "file", "train"):
        pass


def test_many_share_a_folder_and_one_has_it_alone(tmp_path):
    with FolderLock(tmp_path, "caching") as one, FolderLock(tmp_path, "caching") as two:
        assert one.try_alone()
        assert not two.try_alone()
        assert not two.try_together()
        assert one.try_together()
        assert two.try_together()
        assert not one.try_alone()
        two.release()
        assert one.try_alone()


def test_who_does_something_else_is_refused_and_not_told_to_wait(tmp_path):
    with FolderLock(tmp_path, "caching") as one, FolderLock(tmp_path, "train") as two:
        assert one.try_alone()
        assert one.try_together()
        with pytest.raises(SaelabError, match=r"train: .* is in use by another process"):
            two.try_alone()
    # What somebody did before says nothing once the lock is free.
    with FolderLock(tmp_path, "train") as two:
        assert two.try_alone()


def test_a_claim_is_one_processs_until_it_lets_go(tmp_path):
    path = tmp_path / "new folder" / "shard.lock"
    with claimed(path) as mine, claimed(path) as other:
        assert mine
        assert not other
    with claimed(path) as mine:
        assert mine


def test_a_file_system_without_locks_is_one_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with (
        pytest.raises(
            SaelabError, match=r"cannot lock .*Operation not supported; use a file system that has locks"
        ),
        claimed(tmp_path / "a.lock"),
    ):
        pass


def test_a_folder_in_which_nothing_was_begun_is_gone_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="refused"), locked(tmp_path / "new", "work"):
        raise ValueError("refused")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match="refused"), locked(tmp_path / "old", "work"):
        raise ValueError("refused")
    assert (tmp_path / "old").exists()
    with pytest.raises(ValueError, match="refused"), locked(tmp_path / "begun", "work"):
        (tmp_path / "begun" / "file").touch()
        raise ValueError("refused")
    assert (tmp_path / "begun" / "file").exists()


def test_a_lock_on_a_file_that_was_removed_is_not_believed(tmp_path):
    with FolderLock(tmp_path, "work") as lock:
        (tmp_path / ".lock").unlink()
        with pytest.raises(SaelabError, match="in use by another process"):
            lock.try_alone()
