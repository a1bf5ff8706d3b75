"""How long a training step took, from what the run wrote of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from saelab.errors import SaelabError
from saelab.training.group import Group
from saelab.training.passes import TIMING
from saelab.training.run import GROUP, Run


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Wall time of training, as recorded on the machine that trained; no data, and it differs between machines."""

    tokens_per_second: float
    """Tokens of a pass in a second of wall time, reading, metrics and checkpoints included."""
    saes_in_pass: int
    """SAEs that were trained on that pass together; 1 for a run that is in no group."""
    seconds_per_step: float
    """Wall time of a step of the pass, divided evenly among its SAEs whatever their sizes."""


def step_time(run: Run) -> StepTime | None:
    """Return the time of a step; None where a run has no record of it.

    A run that was interrupted has a rate for each stretch between interruptions, and the mean is over steps; of a
    stretch that was killed there is no rate, and its neighbour stands for it.
    """
    stretches = _stretches(run.path / TIMING)
    if not stretches or run.trained is None:
        return None
    steps = sum(count for count, _ in stretches)
    seconds = sum(count * run.trained.batch / rate for count, rate in stretches)
    together = _saes_in_pass(run)
    return StepTime(
        tokens_per_second=steps * run.trained.batch / seconds,
        saes_in_pass=together,
        seconds_per_step=seconds / steps / together,
    )


def _stretches(path: Path) -> list[tuple[int, float]]:
    """Return the steps and the rate of each stretch of training that took a step."""
    found, before = [], 0
    try:
        for line in path.read_text().splitlines():
            raw = json.loads(line)
            step, rate = int(raw["step"]), float(raw["tokens_per_second"])
            if step > before and rate > 0:
                found.append((step - before, rate))
            before = max(before, step)
    except (OSError, ValueError, KeyError, TypeError):
        return found  # a log, cut by a kill or left behind: what is whole of it counts
    return found


def _saes_in_pass(run: Run) -> int:
    group = run.path.absolute().parent
    if not (group / GROUP).exists():
        return 1
    try:
        passes = Group.open(group).passes
    except SaelabError:
        return 1
    return next((len(names) for names in passes if run.path.name in names), 1)
