"""A disk that is full at any write: one line, nothing that looks complete, and the same command goes on."""

import contextlib
import errno
import json
import os

import pytest
from commands import data_files, start_python
from reliability_helpers import FOLDERS, commands

from saelab.errors import UsageError
from saelab.storage.inspect import verify_folder

PLACES = 5
"""How many syncs fail: the first, the last, and some between."""


def fail_at(monkeypatch, number: int) -> list[int]:
    """Let the disk be full at the sync of that number; return a count of syncs."""
    calls, real = [0], os.fsync

    def fsync(descriptor):
        calls[0] += 1
        if calls[0] == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr("saelab.storage.files.os.fsync", fsync)
    return calls


@pytest.mark.parametrize("command", FOLDERS)
def test_a_full_disk_at_any_write_is_one_line_and_made_good_later(
    inputs, saelab, tmp_path, monkeypatch, command
):
    with monkeypatch.context() as patch:
        calls = fail_at(patch, 0)
        assert saelab(*commands(inputs, tmp_path / "straight")[command])[0] == 0
    expected, failed = data_files(tmp_path / "straight"), 0
    for number in {1 + (calls[0] - 1) * part // (PLACES - 1) for part in range(PLACES)}:
        place = tmp_path / str(number)
        with monkeypatch.context() as patch:
            fail_at(patch, number)
            code, out, err = saelab(*commands(inputs, place)[command])
        lines = [line for line in err.splitlines() if line.startswith("saelab ")]
        failed += code
        if code == 0:  # the sync of a folder, which not every file system knows, may fail
            assert data_files(place) == expected
            continue
        assert (code, out) == (1, "")
        assert len(lines) == 1 and "No space left on device" in lines[0] and "unexpected" not in lines[0], err
        assert list(place.rglob("*.writing")) == []
        _assert_nothing_wrong_looks_complete(place)
        assert saelab(*commands(inputs, place)[command])[0] == 0
        assert data_files(place) == expected, number
    assert failed >= 2


def _assert_nothing_wrong_looks_complete(place):
    with contextlib.suppress(UsageError):  # nothing there is finished
        assert verify_folder(place).problems == []


CHILD = """
import json, resource, sys
from saelab.cli.main import run

for limit, command in json.loads(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    print(run(command), file=sys.stderr)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(run(command), file=sys.stderr)
"""


def test_a_limit_of_the_system_on_the_size_of_files_is_one_line_too(inputs, tmp_path):
    limits = {"cache": 20_000, "train": 4_000, "evaluate": 300}
    runs = [(limits[name], command) for name, command in commands(inputs, tmp_path).items()]
    child = start_python(CHILD, json.dumps(runs))
    _, err = child.communicate()
    assert child.returncode == 0, err
    lines = [line for line in err.splitlines() if line.startswith("saelab ") or line in "012"]
    assert lines[1::3] == ["1"] * 3 and lines[2::3] == ["0"] * 3, err
    assert all("File too large" in line and "unexpected" not in line for line in lines[0::3]), err
