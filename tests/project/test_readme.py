"""What the README says works."""

import re
import shlex
from pathlib import Path

from saelab.cli.main import COMMANDS

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_python_of_the_readme_runs_in_under_ten_lines(tmp_path, monkeypatch, capsys):
    section = README.split("## The same in Python")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) < 10
    small = {'tokens="200k"': 'tokens="8k"', 'tokens="600k"': 'tokens="12k"', 'width="x8"': 'width="x2"'}
    for large, little in small.items():
        assert large in code
        code = code.replace(large, little)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "ce_recovered_zero" in out
    assert "torch.Size([100, 256])" in out


def test_every_command_of_the_readme_exists_and_its_options_are_read():
    from importlib import import_module

    from saelab.cli.options import parse

    lines = re.findall(r"^saelab .*$", README, re.MULTILINE)
    assert {line.split()[1] for line in lines} == set(COMMANDS) - {"demo"}
    for line in lines:
        _, command, *arguments = shlex.split(line, comments=True)
        assert parse(import_module(f"saelab.cli.{command}").Options, command, arguments)
