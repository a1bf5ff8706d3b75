"""Folders of any name, folders that are not there, and folders that one may not read or write."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from commands import data_files, start_python
from reliability_helpers import FOLDERS, commands

NAMES = ["with spaces", "ünï-中文", "up/../and down", "-dash"]


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name_give_the_same_files(inputs, saelab, tmp_path, name):
    plain = {}
    for place in (tmp_path / "plain", tmp_path / name):
        place.mkdir(parents=True, exist_ok=True)
        (place / name).mkdir(parents=True, exist_ok=True)
        own = shutil.copytree(inputs, place / name, dirs_exist_ok=True)
        for command, line in commands(own, place).items():
            assert saelab(*line)[0] == 0, command
            files = data_files(place / FOLDERS[command])
            if command == "cache":  # its configuration names the text, and so does the manifest
                files = {file: content for file, content in files.items() if file.startswith("hooks/")}
            if command == "evaluate":  # the record names its store
                files = {
                    file: {key: value for key, value in json.loads(content).items() if key != "source"}
                    for file, content in files.items()
                    if not file.endswith("manifest.json")
                }
                assert files
            assert plain.setdefault(command, files) == files, command
        assert saelab("verify", place)[0] == 0
        assert saelab("ls", place)[0] == 0


@pytest.mark.parametrize("command", ["train", "evaluate", "verify", "ls"])
def test_a_folder_that_is_not_there_is_one_line(saelab, tmp_path, command):
    options = {"train": ["--tokens", "1k", "--out", tmp_path / "run"]}.get(command, [])
    code, out, err = saelab(command, tmp_path / "missing", *options)
    assert code in (1, 2)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "unexpected" not in err
    assert str(tmp_path / "missing") in err


CHILD = """
import json, os, sys
from saelab.cli.main import run

before, lines = json.loads(sys.argv[1])
for line in before:  # the interpreter's own files may not be readable later
    assert run(line) == 0
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for line in lines:
    print("@", run(line), file=sys.stderr)
"""


@pytest.fixture
def open_place():
    """A folder that everybody may look into, which the folders of the tests need not be."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_whoever_may_not_read_or_write_gets_one_line(inputs, open_place):
    """Root may do everything, so the commands run in a process that is nobody."""
    own, closed = shutil.copytree(inputs, open_place / "inputs"), open_place / "closed"
    for path in (own, *own.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    closed.mkdir(mode=0o555)
    for name, file in {
        "unread": "store/keep.bin",
        "hidden": "run/manifest.json",
        "mute": "text.jsonl",
    }.items():
        shutil.copytree(own, open_place / name)
        (open_place / name / file).chmod(0o000)
    shutil.copytree(own / "run", open_place / "shut" / "run")
    (open_place / "shut").chmod(0o000)
    unread, hidden, mute = (open_place / name for name in ("unread", "hidden", "mute"))
    wanted = {
        f"cache: cannot write to {closed / 'cached'}": commands(own, closed)["cache"],
        f"train: cannot write to {closed / 'run'}": commands(own, closed)["train"],
        f"evaluate: {closed / 'overlay'} cannot be written": commands(own, closed)["evaluate"],
        f"evaluate: {own / 'run'} cannot be written": ["evaluate", own / "run"],
        f"cannot read {unread / 'store/keep.bin'}": commands(unread, open_place / "no")["train"],
        f"cannot read {hidden / 'run/manifest.json'}": ["evaluate", hidden / "run"],
        f"cannot read {mute / 'text.jsonl'}": commands(mute, closed)["cache"],
        f"{open_place / 'shut/run'}": ["evaluate", open_place / "shut" / "run"],
    }
    before = list(commands(own, open_place / "before").values())
    lines = [[str(part) for part in line] for line in wanted.values()]
    child = start_python(CHILD, json.dumps([before, lines]))
    _, err = child.communicate()
    assert child.returncode == 0, err
    told = [line for line in err.splitlines() if line.startswith(("saelab ", "@"))]
    assert len(told) == 2 * len(wanted), err
    for message, line, code in zip(wanted, told[::2], told[1::2], strict=True):
        assert message in line and "unexpected" not in line, (message, line)
        assert code in ("@ 1", "@ 2"), line
