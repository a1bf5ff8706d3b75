"""From paths to finished runs: run folders, and groups, which stand for all their members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saelab.errors import DamagedFileError, UsageError
from saelab.storage.manifest import read_manifest
from saelab.training.group import GROUP, Group
from saelab.training.run import CONFIG, LENGTHS, Run


@dataclass(frozen=True)
class RunList:
    """The finished runs that some paths stand for."""

    runs: tuple[Run, ...]
    """Finished runs, in the order of the paths."""
    left_out: tuple[str, ...]
    """One sentence for each member of a group that is not finished, with the reason."""


def expand_runs(paths: Sequence[Path | str]) -> RunList:
    """Open run folders and groups; members of a group that are not finished are left out and named.

    Raises:
        UsageError: A path is no finished run or group, or none of the runs is finished.
        DamagedFileError: A run or a group is damaged.
    """
    if not paths:
        raise UsageError("give at least one run folder")
    runs: list[Run] = []
    left_out: list[str] = []
    for path in map(Path, paths):
        if not (path / GROUP).exists():
            runs.append(open_run(path))
            continue
        group = Group.open(path)
        finished = group.finished
        runs.extend(finished.values())
        left_out.extend(_why_not(group, name) for name in group.members if name not in finished)
    if not runs:
        raise UsageError(f"there is no finished run to use: {'; '.join(left_out) or 'the group is empty'}")
    return RunList(tuple(runs), tuple(left_out))


def open_run(path: Path | str) -> Run:
    """Open a run, with a message that helps where the path is something else."""
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist; saelab ls shows what is here")
    if (path / GROUP).exists():
        members = ", ".join(Group.open(path).members) or "none"
        raise UsageError(f"{path} is a group of runs; name one of its members: {members}")
    try:
        return Run.open(path)
    except DamagedFileError as error:
        if (path / CONFIG).exists() and not (path / "manifest.json").exists():
            raise UsageError(f"{path} is a run that is not finished; {_what_to_do(path)}") from error
        if not (path / "manifest.json").exists():
            raise UsageError(f"{path} is not a run; saelab ls shows what is here") from error
        if (kind := read_manifest(path).kind) != "run":
            hint = "; its activations are given with --store" if kind == "store" else ""
            raise UsageError(f"{path} is not a run but a folder of kind {kind}{hint}") from error
        raise


def _why_not(group: Group, name: str) -> str:
    if name in group.parked:
        return f"{group.path / name} was left out: it {group.parked[name]}"
    todo = _what_to_do(group.path / name, "the group's")
    return f"{group.path / name} was left out: it is not finished; {todo}"


def _what_to_do(path: Path, whose: str = "its") -> str:
    """Say what to do about an unfinished run; one that is being made longer has finished, shorter ones."""
    again = f"run {whose} train command again"
    shorter = [place for place in (path / LENGTHS).glob("tokens-*") if (place / "manifest.json").exists()]
    if not shorter:
        return again
    longest = max(shorter, key=lambda place: (len(place.name), place.name))
    return f"{again}, or use the shorter run that it was before, {longest}"
