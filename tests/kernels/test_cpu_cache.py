"""The backend "cpu" where its compiled loops cannot be kept on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import saelab_kernels
from saelab_kernels.rules import PerToken
from saelab_kernels.select import encode_select

SELECT = """
import sys, torch
import saelab_kernels
from saelab_kernels.rules import PerToken
from saelab_kernels.select import encode_select
assert saelab_kernels.__file__.startswith(sys.argv[1]), saelab_kernels.__file__
x = torch.arange(12.0).reshape(3, 4)
code = encode_select(x, torch.arange(40.0).reshape(10, 4).t().sin(), torch.zeros(10), PerToken(3), backend="cpu").code
print(code.values.double().tolist())
"""


def expected_output() -> str:
    x = torch.arange(12.0).reshape(3, 4)
    W_enc = torch.arange(40.0).reshape(10, 4).t().sin()
    return str(
        encode_select(x, W_enc, torch.zeros(10), PerToken(3), backend="cpu").code.values.double().tolist()
    )


def copied_package(place: Path) -> Path:
    """The package without anything compiled, where nothing compiled can be written beside it either."""
    source = Path(saelab_kernels.__file__).parent
    shutil.copytree(source, place / "saelab_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [
        place / "saelab_kernels",
        *(p for p in (place / "saelab_kernels").rglob("*") if p.is_dir()),
    ]:
        (folder / "__pycache__").touch()  # a file: no rights and no user can make it a folder
    return place


def select_in_process(place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # Not as a module of the checkout: the first path is where the package is looked for.
    return subprocess.run(
        [sys.executable, "-c", SELECT, str(place)],
        env={**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", **environment},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_works_where_nothing_can_be_kept(tmp_path):
    place = copied_package(tmp_path)
    (nowhere := tmp_path / "file").touch()
    homes = {name: str(nowhere / "x") for name in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "IPYTHONDIR")}
    done = select_in_process(place, **homes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected_output()
    assert not list(tmp_path.rglob("*.nbi"))


def test_keeps_its_loops_where_the_user_says(tmp_path):
    place = copied_package(tmp_path)
    chosen = tmp_path / "kept"
    first = select_in_process(place, NUMBA_CACHE_DIR=str(chosen))
    assert first.returncode == 0, first.stderr
    assert list(chosen.rglob("*.nbi"))
    shutil.copytree(chosen, before := tmp_path / "before")
    again = select_in_process(place, NUMBA_CACHE_DIR=str(chosen))
    assert again.stdout == first.stdout and again.stdout.strip() == expected_output()
    assert sorted(p.name for p in chosen.rglob("*.nb?")) == sorted(p.name for p in before.rglob("*.nb?"))
