import json

import pytest

from saelab.cli.main import run
from saelab.storage.manifest import read_manifest

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="session")
def store_and_run(tmp_path_factory):
    """A small store of the embedded model and a run on it, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("cli")
    store, trained = folder / "store", folder / "run"
    assert run(["cache", "embedded", "stdlib", "--at", HOOK, "--tokens", "12k", "--out", str(store)]) == 0
    command = ["train", str(store), "--k", "8", "--width", "x2", "--tokens", "20k", "--batch", "512"]
    assert run([*command, "--out", str(trained)]) == 0
    assert read_manifest(trained).kind == "run"
    return store, trained


@pytest.fixture
def saelab(capsys):
    """Run a command; returns exit code, standard output and standard error."""

    def call(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def saelab_json(saelab):
    """Run a command with --json; it must print one JSON object and nothing else on standard output."""

    def call(*arguments, code=0):
        found, out, err = saelab(*arguments, "--json")
        assert found == code, err
        assert len(out.strip().splitlines()) == 1
        return json.loads(out)

    return call
