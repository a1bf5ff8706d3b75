"""Start commands as a user would, in processes of their own, and compare what they leave on the disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

COMMAND_LINE = "from saelab.cli.main import main; main()"
NOT_DATA = {"timing.jsonl", "environment.json", "history.json", ".lock"}
"""Files that tell how a run went; all others must be equal for equal requests."""


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start a command of saelab."""
    return start_python(COMMAND_LINE, *arguments)


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python program; its arguments are in ``sys.argv[1:]``."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], limit: float = 120.0) -> None:
    """Wait until a condition holds; the process must be running all the while."""
    until = time.monotonic() + limit
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)


def data_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every data file below a folder, by its relative name; logs are none."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in NOT_DATA and "logs" not in path.relative_to(folder).parts
    }
