"""The script that makes an index of any size makes a sound one, and its queries can be timed."""

import subprocess
import sys
from pathlib import Path

import pytest

from saelab.features.index import FeatureIndex
from saelab.features.queries.filters import FeatureFilter
from saelab.storage.manifest import read_manifest

SCRIPTS = Path(__file__).parents[2] / "scripts"
SIZE = ("--features", "600", "--tokens", "5000", "--vocabulary", "700")


def run_script(name: str, *options: object) -> str:
    command = [sys.executable, str(SCRIPTS / name), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    for name, options in (("a", ()), ("b", ()), ("hostile", ("--hostile",))):
        run_script("synthetic_index.py", folder / name, *SIZE, *options)
    return folder


def test_equal_seeds_give_equal_files(places):
    assert read_manifest(places / "a").files == read_manifest(places / "b").files


@pytest.mark.parametrize("name", ["a", "hostile"])
def test_everything_in_it_can_be_read(places, name):
    with FeatureIndex.open(places / name) as index:
        views = [index.feature(feature) for feature in range(0, 600, 17)]
        assert all(len(view.examples["top"]) == 32 for view in views if not view.row.is_dead)
        dead = index.features(FeatureFilter(alive=False))
        assert dead.total == 600 // 50 and not any(index.feature(dead.rows[0].feature).examples.values())
        shown = index.vocabulary.display(views[0].examples["top"][0].tokens)
        assert len(shown) == len(views[0].examples["top"][0].tokens)
        found = index.features(FeatureFilter(text="<script>alert(1)</script>"))
        assert bool(found.total) == (name == "hostile")


def test_its_queries_are_timed(places):
    lines = run_script("bench_index.py", places / "a", "--calls", "2").splitlines()
    assert lines[0].startswith("synthetic (600 features)")
    assert sum(line.startswith("| ") and line.endswith(" ms |") for line in lines) == 9
