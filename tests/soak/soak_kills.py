"""Commands in processes of their own that are killed at random moments until they have done their work.

The moments are drawn by phase (start-up, work, finishing), uniformly over the time that the phase took
in an undisturbed run, so that the short phases are hit as often as the long ones.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

PHASES = ("start-up", "work", "finishing")
LIMIT = 300.0
POLL = 0.002


@dataclass(frozen=True, kw_only=True)
class Work:
    """A command that writes one folder."""

    start: Callable[[Path, Path], subprocess.Popen[str]]
    """Starts it, from the folder of its inputs and the one that it writes."""
    first_file: str
    """What every process writes, also a resumed one, when its work begins; a glob within the folder."""
    finishing_file: str
    """What every process writes or finds when only the finishing is left; a glob too."""
    processes: int = 1
    """How many are started with the same command at the same time."""


@dataclass
class Team:
    """The processes that write one folder, and what they have done so far, as the disk tells."""

    work: Work
    inputs: Path
    folder: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    started: int = 0
    """Wall clock in nanoseconds, as the times of files, when the first of those at work was started."""

    def start_missing(self) -> None:
        """Start processes in the place of those that were killed."""
        if not self.processes:
            self.started = time.time_ns()
        while len(self.processes) < self.work.processes:
            self.processes.append(self.work.start(self.inputs, self.folder))

    @property
    def phase(self) -> int:
        """Index into `PHASES`."""
        if not self._wrote(self.work.first_file):
            return 0
        return 2 if any(self.folder.glob(self.work.finishing_file)) else 1

    def ended(self, within: float) -> bool:
        """Wait so many seconds at most for all; a process that ends by itself must have succeeded."""
        until = time.monotonic() + within
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=max(0.0, until - time.monotonic()))
                assert code == 0, process.communicate()
        return all(process.poll() is not None for process in self.processes)

    def reached(self, phase: int) -> bool:
        """Wait for a phase; False if all ended first."""
        until = time.monotonic() + LIMIT
        while self.phase < phase:
            assert time.monotonic() < until
            if self.ended(within=POLL):
                return False
        return True

    def kill(self, rng: random.Random) -> int:
        """Send one or more, drawn at random, the signal that nothing can catch; return how many got it."""
        alive = [process for process in self.processes if process.poll() is None]
        chosen = rng.sample(alive, rng.randint(1, len(alive))) if alive else []
        for process in chosen:
            process.kill()
            process.communicate()
            self.processes.remove(process)
        return len(chosen)

    def _wrote(self, name: str) -> bool:
        try:
            return any(file.stat().st_mtime_ns > self.started for file in self.folder.glob(name))
        except FileNotFoundError:
            return False


def run_undisturbed(work: Work, inputs: Path, folder: Path) -> list[float]:
    """Run a command to its end and return how many seconds each phase took."""
    moments = [time.monotonic()]
    team = Team(work, inputs, folder)
    team.start_missing()
    for phase in (1, 2):
        assert team.reached(phase), f"{folder}: no sign of {PHASES[phase]}"
        moments.append(time.monotonic())
    assert team.ended(within=LIMIT)
    moments.append(time.monotonic())
    return [end - begin for begin, end in pairwise(moments)]
