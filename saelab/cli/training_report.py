"""What `saelab train` says: its plan, what it is about to do, and what came of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from saelab.activations.source import ActivationSource
from saelab.cli.options import Result
from saelab.errors import SaelabError
from saelab.memory import peak_memory_bytes
from saelab.quantities import format_bytes
from saelab.training.config import TrainConfig
from saelab.training.group import plan_group
from saelab.training.member import METRICS
from saelab.training.memory import plan_training
from saelab.training.passes import TIMING


def describe_plan(configs: list[TrainConfig], source: ActivationSource, group: Path | None) -> Result:
    """Return memory, disk and steps of what is still to be trained.

    Args:
        configs: What was asked for.
        source: Where the activations come from.
        group: Folder of the group; None for a single run.
    """
    members = {"run": configs[0]}
    if group is not None:
        whole, todo = plan_group(configs, source, group)
        members = {name: whole.members[name] for names in todo for name in names}
    if not members:
        return Result({"plan": None, "configs": []}, f"{group}: every SAE is finished")
    plan = plan_training(members, source)
    text = (
        f"{_counted(len(members), 'SAE', 'SAEs')} on {_counted(len(plan.passes), 'pass', 'passes')}, "
        f"{plan.steps:,} steps, {plan.parameters:,} parameters, {format_bytes(plan.memory_bytes)} of memory, "
        f"{format_bytes(plan.disk_bytes)} on disk"
    )
    return Result({"plan": plan.to_json(), "configs": [c.to_json() for c in members.values()]}, text)


def announce(configs: list[TrainConfig], source: ActivationSource, out: Path) -> None:
    """Say on standard error how many SAEs will be trained on how many passes."""
    group, todo = plan_group(configs, source, out)
    if not todo:
        return
    many = ", as many as memory allows for at a time" if len(todo) > 1 else ""
    sys.stderr.write(
        f"{out}: {_counted(len(group.members), 'SAE', 'SAEs')}, {sum(map(len, todo))} to train on "
        f"{_counted(len(todo), 'pass', 'passes')} over the data{many}\n"
    )


def describe_run(path: Path) -> Result:
    """Return the last metrics of a run."""
    found = _last_metrics(path)
    return Result(found, f"run {path}: {_metrics_as_text(found)}, {_cost_as_text(found)}")


def describe_group(path: Path, names: list[str], parked: dict[str, str]) -> Result:
    """Return the last metrics of a group's members; some that diverged are a failure (exit code 1)."""
    runs = [_last_metrics(path / name) for name in names if name not in parked]
    lines = [f"group {path}: {_counted(len(runs), 'SAE', 'SAEs')}, {_cost_as_text(runs[0])}"]
    lines += [f"  {Path(found['run']).name}: {_metrics_as_text(found)}" for found in runs]
    lines += [f"  {name}: {reason}; left behind" for name, reason in parked.items()]
    data = {"group": str(path), "runs": runs, "parked": parked}
    return Result(data, "\n".join(lines), exit_code=1 if parked else 0)


def _last_metrics(path: Path) -> dict[str, Any]:
    last = next((line for line in reversed(_lines(path / METRICS)) if line["fvu"] is not None), None)
    if last is None:
        raise SaelabError(f"{path}: every batch held NaN or inf and was left out; nothing was learned")
    cost = {"tokens_per_second": _rate(path), "peak_memory_bytes": peak_memory_bytes()}
    return {"run": str(path)} | last | cost


def _rate(path: Path) -> float | None:
    """Return the rate of the last stretch of training; None where a kill left no line of it."""
    try:
        return _lines(path / TIMING)[-1]["tokens_per_second"]
    except (OSError, ValueError, IndexError, KeyError):
        return None


def _metrics_as_text(found: dict[str, Any]) -> str:
    return f"FVU {found['fvu']:.4f}, L0 {found['l0']:.1f}, dead {found['dead_fraction']:.1%}"


def _cost_as_text(found: dict[str, Any]) -> str:
    memory = f"peak memory {format_bytes(found['peak_memory_bytes'])}"
    rate = found["tokens_per_second"]
    return memory if rate is None else f"{rate:,.0f} tokens/s, {memory}"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
