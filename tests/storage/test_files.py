import errno
import json
import os
import subprocess
import sys

import pytest

from saelab.errors import DamagedFileError, SaelabError
from saelab.storage import files
from saelab.storage.files import (
    append_line,
    read_json,
    remove_leftovers,
    require_free_space,
    write_bytes,
    write_json,
)


@pytest.mark.parametrize("name", ["plain.bin", "with space.bin", "ünï-中文.bin"])
def test_written_bytes_are_read_back_under_any_name(tmp_path, name):
    write_bytes(tmp_path / "new folder" / name, b"content")
    assert (tmp_path / "new folder" / name).read_bytes() == b"content"


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_leftover(tmp_path, monkeypatch, broken):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, broken, fail)
    with pytest.raises(SaelabError, match=r"cannot write .*file\.bin: No space left on device"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_a_file_size_limit_of_the_system_gives_one_clear_error(tmp_path):
    script = (
        "import resource, signal, sys; from pathlib import Path; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from saelab.storage.files import write_bytes\n"
        "from saelab.errors import SaelabError\n"
        "try: write_bytes(Path(sys.argv[1]), b'x' * 5000)\n"
        "except SaelabError as error: print(error)"
    )
    path = tmp_path / "big.bin"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_unprivileged_user_gets_one_error_for_a_folder_without_permission(tmp_path):
    become_nobody = "os.setgid(65534); os.setuid(65534)" if os.geteuid() == 0 else "pass"
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent != parent.parent:
            parent.chmod(parent.stat().st_mode | 0o055)
    script = (
        "import os, sys; from pathlib import Path\n"
        "from saelab.storage.files import write_bytes; from saelab.storage.lock import locked\n"
        "from saelab.errors import SaelabError\n"
        f"{become_nobody}\n"
        "for attempt in (lambda: write_bytes(Path(sys.argv[1]) / 'a', b'x'), lambda: locked(Path(sys.argv[1]), 'train')"
        ".__enter__()):\n"
        "    try: attempt()\n"
        "    except SaelabError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("Permission denied") == 2


def test_equal_values_give_equal_json_bytes_and_nan_is_refused(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]})
    write_json(tmp_path / "b.json", {"a": [1.5, None], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "c.json", float("nan"))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1e999999999999}' * 2], ids=range(5)
)
def test_bad_json_is_an_error_of_our_own(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"bad\.json"):
        read_json(tmp_path / "bad.json")


def test_a_huge_json_file_is_refused_unread(tmp_path):
    (tmp_path / "huge.json").write_bytes(b"1" * 101)
    with pytest.raises(DamagedFileError, match="more than 100 bytes"):
        read_json(tmp_path / "huge.json", max_bytes=100)


def test_leftovers_are_removed_where_asked_and_nothing_else(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "folder.writing").mkdir()
    for name in ("a.bin.writing", "deep/chapter.writing", "kept.bin"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "chapter.writing",
        "deep",
        "folder.writing",
        "kept.bin",
    ]
    remove_leftovers(tmp_path, "deep/*")
    assert not (tmp_path / "deep" / "chapter.writing").exists()


def test_a_file_where_a_folder_should_be_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaelabError, match="cannot write"):
        write_bytes(tmp_path / "file" / "inner", b"x")


def test_appended_lines_report_the_size_after_them(tmp_path):
    path = tmp_path / "lines.jsonl"
    first = append_line(path, {"step": 1})
    second = append_line(path, {"step": 2})
    assert path.read_bytes()[:first] == b'{"step": 1}\n'
    assert second == path.stat().st_size
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_work_that_cannot_fit_is_refused_with_both_numbers(tmp_path):
    require_free_space(tmp_path / "not" / "yet" / "there", 1, "caching")
    with pytest.raises(SaelabError, match=r"caching needs 1,180,591,620,717,411,303,424 bytes .* are free"):
        require_free_space(tmp_path, 2**70, "caching")
