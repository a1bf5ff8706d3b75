"""A run knows which kernels computed it: exact resume on others is refused, a wrong name is one line."""

import json

import pytest

from saelab.activations.source import StoreSource
from saelab.cli.main import run
from saelab.errors import Interrupted, SaelabError
from saelab.interrupts import StopRequest
from saelab.training.passes import HowToTrain
from saelab.training.single import train_run
from saelab_kernels.dispatch import OVERRIDE


def stopped_run(make_config, store, folder):
    """A run with a checkpoint in the middle."""
    stop = StopRequest()
    stop.ask()
    with pytest.raises(Interrupted):
        train_run(make_config(), StoreSource(store), folder, HowToTrain(stop=stop, quiet=True))


def test_other_kernels_need_a_plain_resume(make_config, store, tmp_path, monkeypatch):
    monkeypatch.setenv(OVERRIDE, "torch")
    stopped_run(make_config, store, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["kernels"] == "torch"
    monkeypatch.setenv(OVERRIDE, "reference")
    with pytest.raises(
        SaelabError, match=r"kernels torch .* reference.* SAELAB_KERNELS=torch.* --resume plain"
    ):
        train_run(make_config(), StoreSource(store), tmp_path / "run", HowToTrain(quiet=True))
    train_run(make_config(), StoreSource(store), tmp_path / "run", HowToTrain(resume="plain", quiet=True))
    assert (tmp_path / "run" / "manifest.json").exists()


def test_a_backend_that_is_not_there_is_wrong_usage_in_one_line(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(OVERRIDE, "nonsense")
    options = [
        "--k",
        "4",
        "--width",
        "16",
        "--tokens",
        "640",
        "--batch",
        "64",
        "--out",
        str(tmp_path / "run"),
    ]
    assert run(["train", str(store.path), *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("saelab train: SAELAB_KERNELS=nonsense: available here: torch")
    assert not (tmp_path / "run").exists()
