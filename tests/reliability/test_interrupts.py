"""Ctrl-C and SIGTERM: once saves and says how to go on, twice stops at once; exit code 130."""

import os
import signal

import pytest
from commands import data_files
from reliability_helpers import commands

from saelab.activations.harvest import Harvester


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_a_cache_that_is_stopped_exits_with_130_and_goes_on(
    inputs, saelab, tmp_path, monkeypatch, number, times
):
    line = commands(inputs, tmp_path)["cache"]
    real = Harvester.harvest

    def harvest_and_stop(self, batch):
        for _ in range(times if batch == 1 else 0):
            os.kill(os.getpid(), number)
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Harvester, "harvest", harvest_and_stop)
        code, out, err = saelab(*line)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith("saelab cache: ")
    assert ("run the same command to go on" in err) == (times == 1)
    assert saelab(*line)[0] == 0
    assert saelab(*commands(inputs, tmp_path / "straight")["cache"])[0] == 0
    assert data_files(tmp_path / "cached") == data_files(tmp_path / "straight" / "cached")


def test_an_evaluation_that_is_stopped_exits_with_130_and_leaves_no_record(
    inputs, saelab, tmp_path, monkeypatch
):
    line = commands(inputs, tmp_path)["evaluate"]

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("saelab.evaluation.runs.evaluate_together", stop)
        code, out, err = saelab(*line)
    assert (code, out) == (130, "")
    assert "interrupted" in err
    assert list(tmp_path.rglob("*.json")) == []
    assert saelab(*line)[0] == 0
