"""What long work shows: a bar on a terminal, a plain line every 30 s elsewhere, nothing where quiet."""

import io

import pytest

from saelab import progress
from saelab.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when it is told to."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_comes_every_30_seconds(capsys, clock):
    with Progress("caching", 1000, "tokens", done=200) as bar:
        lines = []
        for _ in range(7):
            clock[0] += 10
            bar.advance(100)
            lines.append(capsys.readouterr().err)
        bar.note("waiting")
        clock[0] += 30
        bar.advance(0)
        noted = capsys.readouterr().err
    assert [number for number, line in enumerate(lines, start=1) if line] == [3, 6]
    assert lines[2] == "caching: 50%, 500 of 1,000 tokens, 10/s, 50 s left\n"
    assert noted.endswith(", waiting\n")
    assert capsys.readouterr().err == "caching: 700 tokens in 100.0 s (7/s)\n"


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress("caching", 100, "tokens") as bar:
        bar.advance(50)
        bar.say("something to know")
    shown = terminal.getvalue()
    assert "caching:" in shown and "/100" in shown
    assert "something to know\n" in shown


def test_quiet_work_shows_nothing(capsys, clock):
    with Progress("caching", 100, "tokens", quiet=True) as bar:
        clock[0] += 100
        bar.advance(50)
        bar.say("something to know")
    assert capsys.readouterr() == ("", "")


def test_work_that_fails_ends_without_a_count(capsys):
    with pytest.raises(ZeroDivisionError), Progress("caching", 100, "tokens"):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_work_without_a_known_end_shows_no_share(capsys, clock):
    with Progress("encoding", None, "tokens") as bar:
        clock[0] += 30
        bar.advance(600)
        assert capsys.readouterr().err == "encoding: 600 tokens, 20/s\n"
