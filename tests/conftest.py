"""One thread for every test (small matrices gain nothing from two), and a way around annotation checks."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the checks of annotations off, for tests that pass a wrong type or shape on purpose.

    Users run without these checks, so what counts is the refusal that the code itself gives.
    """
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
