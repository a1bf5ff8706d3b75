import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from reliability_helpers import commands

from saelab.activations.store import Store
from saelab.cli.main import run


@pytest.fixture
def saelab(capsys):
    """Run a command as a user does; returns exit code, standard output and standard error."""

    def call(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """A text, a store of own activations, and a run on it."""
    folder = tmp_path_factory.mktemp("inputs")
    choose, words = (
        random.Random(1),
        ["any", "text", "of", "few", "words", "that", "nobody", "has", "to", "read", "twice"],
    )
    texts = (" ".join(choose.choices(words, k=choose.randint(20, 60))) for _ in range(60))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    Store.from_tensors(folder / "store", torch.randn(3000, 8, generator=torch.Generator().manual_seed(0)))
    assert run(commands(folder, folder)["train"]) == 0
    return folder


@pytest.fixture
def own(inputs, tmp_path) -> Path:
    """A copy of the inputs, to be damaged."""
    return Path(shutil.copytree(inputs, tmp_path / "inputs"))
