"""Loggers and time limits change nothing of what a run computes."""

import pytest
from training_helpers import data_files, train_run

from saelab import interrupts
from saelab.errors import Interrupted
from saelab.interrupts import StopRequest
from saelab.training import loggers


def test_a_logger_that_fails_at_every_line_changes_nothing_of_the_run(
    make_config, store, tmp_path, straight, monkeypatch, capsys
):
    class Broken:
        def log(self, step, values):
            raise RuntimeError("the server is on fire")

        def close(self):
            raise RuntimeError("still on fire")

    monkeypatch.setitem(loggers._OPENERS, "tensorboard", lambda run: Broken())
    train_run(make_config(), store, tmp_path / "run", log=("tensorboard",))
    assert data_files(tmp_path / "run") == straight
    assert capsys.readouterr().err.count("the server is on fire") == 1


def test_a_run_whose_time_is_over_is_saved_and_goes_on(make_config, store, tmp_path, straight, monkeypatch):
    now = {"seconds": 0.0}
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now["seconds"])
    stop = StopRequest(seconds=100)
    assert not stop.requested
    now["seconds"] = 100.0
    with pytest.raises(Interrupted, match="after step 1 of 24 and saved; the same command goes on"):
        train_run(make_config(), store, tmp_path / "run", stop=stop)
    train_run(make_config(), store, tmp_path / "run", stop=StopRequest(seconds=100))
    assert data_files(tmp_path / "run") == straight
