"""kill -9 at random moments of `cache` and `train`: the same command ends with the same bytes as if undisturbed.

The moments are drawn by phase (start-up, work, finishing), uniformly over the time that the phase took
in an undisturbed run, so that the short phases are hit as often as the long ones.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from commands import data_files, start, start_python

from saelab.activations.store import Store
from saelab.storage.manifest import read_manifest

pytestmark = pytest.mark.soak

KILLS = int(os.environ.get("SAELAB_SOAK_KILLS", "50"))
KILLS_OF_ONE_FOLDER = 6
PHASES = ("start-up", "work", "finishing")
LIMIT = 300.0
POLL = 0.002

CACHE = """
import sys
import saelab

saelab.cache("embedded", "stdlib", at="blocks.1.hook_resid_post", tokens="10k", out=sys.argv[1],
             context=64, batch_rows=8, shard_rows=1024, loss=True, quiet=True)
"""


@dataclass(frozen=True)
class Work:
    """A command that writes one folder."""

    start: Callable[[Path], subprocess.Popen[str]]
    """Starts it on a folder."""
    first_file: str
    """What every process writes, also a resumed one, when its work begins."""
    finishing_file: str
    """What every process writes or finds when only the finishing is left."""


@dataclass(frozen=True)
class Child:
    """A running command and what it has done so far, as the disk tells."""

    process: subprocess.Popen[str]
    work: Work
    folder: Path
    started: int
    """Wall clock in nanoseconds, as the times of files."""

    @property
    def phase(self) -> int:
        """Index into `PHASES`."""
        if not self._wrote(self.work.first_file):
            return 0
        return 2 if (self.folder / self.work.finishing_file).exists() else 1

    def _wrote(self, name: str) -> bool:
        try:
            return (self.folder / name).stat().st_mtime_ns > self.started
        except FileNotFoundError:
            return False

    def ended(self, within: float) -> bool:
        """Wait so many seconds at most; a command that ends by itself must have succeeded."""
        try:
            code = self.process.wait(timeout=within)
        except subprocess.TimeoutExpired:
            return False
        assert code == 0, self.process.communicate()
        return True

    def reached(self, phase: int) -> bool:
        """Wait for a phase; False if the command ended first."""
        until = time.monotonic() + LIMIT
        while self.phase < phase:
            assert time.monotonic() < until
            if self.ended(within=POLL):
                return False
        return True

    def kill(self) -> None:
        """Send the signal that nothing can catch, and close the pipes."""
        self.process.kill()
        self.process.communicate()


def start_child(work: Work, folder: Path) -> Child:
    started = time.time_ns()
    return Child(work.start(folder), work, folder, started)


def run_undisturbed(work: Work, folder: Path) -> list[float]:
    """Run a command to its end and return how many seconds each phase took."""
    moments = [time.monotonic()]
    child = start_child(work, folder)
    for phase in (1, 2):
        assert child.reached(phase)
        moments.append(time.monotonic())
    assert child.ended(within=LIMIT)
    moments.append(time.monotonic())
    return [end - begin for begin, end in pairwise(moments)]


def kill_at_random(
    work: Work, place: Path, durations: list[float], check: Callable[[Path], None]
) -> Counter[str]:
    """Kill a command again and again, and check every folder once a process has run to its end.

    Returns:
        In which phase the kills came, and under ``folders`` how many folders were checked.
    """
    rng = random.Random(0)
    counts: Counter[str] = Counter()
    kills = 0
    while kills < KILLS:
        folder, here = place / f"folder-{counts['folders']}", 0
        ended = False
        while not ended:
            child = start_child(work, folder)
            if here == KILLS_OF_ONE_FOLDER or kills == KILLS:
                ended = child.ended(within=LIMIT)
                assert ended, f"{folder}: no end within {LIMIT} s"
                continue
            aim = rng.randrange(len(PHASES))
            delay = rng.uniform(0, durations[aim])
            ended = not child.reached(aim) or child.ended(within=delay)
            if not ended:
                counts[PHASES[child.phase]] += 1
                child.kill()
                kills, here = kills + 1, here + 1
        check(folder)
        shutil.rmtree(folder)
        counts["folders"] += 1
    return counts


def kill_and_compare(name: str, work: Work, place: Path) -> None:
    began = time.monotonic()
    durations = run_undisturbed(work, place / "straight")
    wanted = data_files(place / "straight")

    def check(folder: Path) -> None:
        found = data_files(folder)
        assert found.keys() == wanted.keys()
        assert [file for file in wanted if found[file] != wanted[file]] == []

    counts = kill_at_random(work, place, durations, check)
    by_phase = ", ".join(
        f"{counts[phase]} in {phase} ({s:.2f} s)" for phase, s in zip(PHASES, durations, strict=True)
    )
    print(
        f"\nkill -9 of {name}: {sum(counts[phase] for phase in PHASES)} kills, {by_phase}; "
        f"{counts['folders']} folders of {len(wanted)} files equal; {time.monotonic() - began:.0f} s"
    )
    if KILLS >= 50:
        assert all(counts[phase] for phase in PHASES), "a phase was never hit: the test shows too little"


def test_a_cache_killed_anywhere_ends_with_the_same_bytes(tmp_path):
    work = Work(lambda out: start_python(CACHE, out), first_file="config.json", finishing_file="rows.bin")
    kill_and_compare("cache", work, tmp_path)
    # `straight` is still there: the kills are worth something only if there were shards to lose.
    assert len(read_manifest(tmp_path / "straight", "store").content["shards"]) >= 5


def test_a_training_killed_anywhere_ends_with_the_same_bytes(tmp_path):
    x = torch.randn(16_384, 64, generator=torch.Generator().manual_seed(0))
    Store.from_tensors(tmp_path / "store", x).close()
    options = ["--k", 8, "--width", "x8", "--tokens", "120k", "--batch", 256, "--checkpoint-every", 25]
    steps = 120_000 // 256
    work = Work(
        lambda out: start("train", tmp_path / "store", *options, "--out", out),
        first_file="environment.json",
        finishing_file=f"checkpoints/step-{steps:06d}/manifest.json",
    )
    kill_and_compare("train", work, tmp_path)
