import pytest

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
