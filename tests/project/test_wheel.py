"""The built wheel, not the checkout: installed beside the tested dependencies it runs from another folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which the wheel was installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: setuptools keeps what it built before beside its source
    for name in ("saelab", "kernels", "app"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(folder.glob("saelab-*.whl"))
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return wheel, folder / "site"


def run(site, cwd, *arguments):
    """Run `saelab` from the installed wheel alone; the checkout must not be found first."""
    script = (
        "import sys, saelab, saelab_kernels\n"
        f"assert all(m.__file__.startswith({str(site)!r}) for m in (saelab, saelab_kernels)), saelab.__file__\n"
        "from saelab.cli.main import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_three_packages_and_the_model_and_no_tests(site):
    wheel, _ = site
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"saelab", "saelab_kernels", "saelab_app"} <= tops
    assert not {"tests", "scripts", "kernels", "app"} & tops
    model = [info for info in zipfile.ZipFile(wheel).infolist() if "/embedded/model/" in info.filename]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        info.filename.split("/")[-1] for info in model
    }
    assert sum(info.file_size for info in model) <= 12 * 2**20


def test_the_demo_runs_from_the_wheel_in_another_folder(site, tmp_path):
    small = ["--store-tokens", "12k", "--train-tokens", "16k", "--width", "512", "--small-width", "256"]
    out = run(site[1], tmp_path, "demo", *small, "--k", "8", "--evaluation-tokens", "1k", "--json")
    report = json.loads(out)
    assert list(report["runs"]) == ["topk-k8-f512-s0", "topk-k8-f256-s0"]
    assert report["fvu"] == report["runs"]["topk-k8-f512-s0"]["fvu"]
    assert set(report["stages"]) >= {"load", "cache", "index", "report"}
    assert (tmp_path / "runs" / "demo" / "store" / "manifest.json").exists()
