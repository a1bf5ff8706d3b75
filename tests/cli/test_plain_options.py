"""Options in help and in error lines: plain words, whatever the terminal can draw."""

import os
import re
import subprocess
import sys

import pytest
from commands import COMMAND_LINE


def in_ascii(*arguments):
    """Run a command where nothing but ASCII can be written."""
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-c", COMMAND_LINE, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **plain},
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["hooks", "--nosuch"],
        ["hooks", "--model-dtype", "int8"],
        ["evaluate", "x", "--tokens", "0"],
        ["cache", "embedded"],
    ],
)
def test_an_error_is_the_same_line_where_boxes_are_drawn_in_ascii(saelab, arguments):
    code, _, usual = saelab(*arguments)
    found = in_ascii(*arguments)
    assert (found.returncode, found.stderr) == (code, usual) == (2, usual)
    assert not re.search(r"--(\s|-)|full helptext|[╭│─]", found.stderr)
    assert found.stderr.count("--help") == 1


@pytest.mark.parametrize("command", ["hooks", "cache", "train", "evaluate"])
def test_help_shows_plain_kinds_of_values(saelab, command):
    _, out, _ = saelab(command, "--help")
    assert "{None" not in out
    assert not re.search(r"\b(INT|FLOAT)\b", out)
    options = out[out.index("--json") :]
    assert "(default: )" not in options
    assert "(default: None)" not in options
    assert "--adapter STR" in options


def test_numbers_that_are_none_are_refused_by_name(saelab):
    code, _, err = saelab("train", "store", "--tokens", "1k", "--out", "x", "--lr", "1e-3", "fast")
    assert code == 2
    assert "--lr: 'fast' is not a number" in err
    code, _, err = saelab("cache", "embedded", "stdlib", "--out", "x", "--context", "1.5")
    assert "--context: '1.5' is not a whole number" in err
