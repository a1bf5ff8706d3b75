"""Checkpoints: everything that a run needs to go on with the same bits."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from saelab.errors import DamagedFileError, SaelabError
from saelab.storage.files import read_json, write_json
from saelab.storage.manifest import check_file, read_manifest, write_manifest
from saelab.storage.tensors import read_tensors, write_tensors
from saelab_kernels.dispatch import OVERRIDE, choose_backend
from saelab_kernels.shapes import Tensor

FACTS = "state.json"
KEPT = 2
Resume = Literal["exact", "plain"]
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a pass between two steps, on disk and checked; tensors are read when they are asked for."""

    path: Path
    step: int
    """Steps done."""
    position: dict[str, Any]
    """Where the stream of activations goes on."""
    members: dict[str, dict[str, Any]]
    """For each SAE that is still trained: size of its metrics file, skipped batches."""
    parked: dict[str, str]
    """SAEs that have diverged, with the diagnosis."""
    threads: int
    """Threads that it was computed with."""
    kernels: str
    """Backend of the kernels that it was computed with."""

    def tensors(self, member: str) -> dict[str, Tensor]:
        """Read one member's weights, moments, counters and recipe state, by dotted names."""
        return read_tensors(self.path / tensors_name(member))


def tensors_name(member: str) -> str:
    """Return the file of a member's tensors inside a checkpoint."""
    return f"{member}.safetensors"


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: dict[str, dict[str, Tensor]],
    facts: dict[str, Any],
    *,
    keep_forever: bool,
    every: int,
) -> None:
    """Write a checkpoint and remove those that are no longer needed.

    Kept are the last two at regular steps, those marked ``keep_forever`` (the one before the
    learning rate decays, where a longer run would branch off), and this one.

    Args:
        folder: The ``checkpoints`` folder.
        step: Steps done.
        tensors: State of each member.
        facts: The further fields of a `Checkpoint`.
        keep_forever: Whether this one outlives later ones.
        every: Regular steps are multiples of this number.
    """
    place = folder / f"step-{step:06d}"
    if place.exists():
        _remove(place)
    for member, state in tensors.items():
        write_tensors(place / tensors_name(member), state)
    write_json(place / FACTS, facts | {"step": step, "keep": keep_forever})
    write_manifest(place, "checkpoint", [*map(tensors_name, tensors), FACTS], {"step": step})
    _prune(folder, every)


def latest_checkpoint(folder: Path, up_to: int | None = None) -> Checkpoint | None:
    """Return the newest whole checkpoint; unfinished ones are skipped, damaged ones are an error.

    Args:
        folder: The ``checkpoints`` folder.
        up_to: Leave out those after this step.

    Raises:
        DamagedFileError: Its files are not what its manifest says.
    """
    places = [p for p in finished_checkpoints(folder) if up_to is None or _step_of(p) <= up_to]
    if not places:
        return None
    place = places[-1]
    try:
        manifest = read_manifest(place, "checkpoint")
        for name in (FACTS, *manifest.files):
            check_file(place, name, manifest)
        facts = read_json(place / FACTS)
        fields = ("step", "position", "members", "parked", "threads", "kernels")
        checkpoint = Checkpoint(place, **{name: facts[name] for name in fields})
        if missing := [name for name in checkpoint.members if tensors_name(name) not in manifest.files]:
            raise DamagedFileError(f"{place} lacks the state of {', '.join(missing)}")
        return checkpoint
    except (DamagedFileError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{error}; remove {place} to go on from the checkpoint before it") from error


def require_same_arithmetic(folder: Path, checkpoint: Checkpoint, device: str, resume: Resume) -> None:
    """Refuse to go on exactly with other threads or kernels than a checkpoint was computed with.

    Raises:
        SaelabError: With what to do.
    """
    if resume == "plain":
        return
    then = {"threads": checkpoint.threads, "kernels": checkpoint.kernels}
    for (what, before), now, setting in zip(
        then.items(),
        (torch.get_num_threads(), choose_backend(device)),
        ("OMP_NUM_THREADS", OVERRIDE),
        strict=True,
    ):
        if before != now:
            raise SaelabError(
                f"{folder} was trained with {what} {before} and this process has {now}: the same bits are not "
                f"possible; set {setting}={before}, or go on with --resume plain"
            )


def remove_later_than(folder: Path, step: int) -> None:
    """Remove the checkpoints after a step, newest first, so that a crash in between leaves a sound row."""
    for place in reversed(finished_checkpoints(folder)):
        if _step_of(place) > step:
            _remove(place)


def _step_of(place: Path) -> int:
    return int(place.name.removeprefix("step-"))


def finished_checkpoints(folder: Path) -> list[Path]:
    """Return the folders of whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m.group(1)), place) for place in folder.iterdir() if (m := _NAME.fullmatch(place.name))]
    return [place for _, place in sorted(found) if (place / "manifest.json").exists()]


def remove_unfinished(folder: Path) -> None:
    """Remove what interrupted writers left; call it while holding the run's lock."""
    finished = set(finished_checkpoints(folder))
    for place in folder.glob("step-*"):
        if place not in finished:
            shutil.rmtree(place)


def keep_regular_only(folder: Path, every: int, last_step: int) -> None:
    """Remove checkpoints that exist only because a run was interrupted, so that equal runs end equal."""
    for place in finished_checkpoints(folder):
        facts = read_json(place / FACTS)
        if facts["step"] % every and facts["step"] != last_step and not facts["keep"]:
            _remove(place)
    _prune(folder, every)  # the last one may have been cut short


def _prune(folder: Path, every: int) -> None:
    places = finished_checkpoints(folder)
    regular = [place for place in places if read_json(place / FACTS)["step"] % every == 0]
    needed = {*regular[-KEPT:], *places[-1:]}
    for place in places:
        if place not in needed and not read_json(place / FACTS)["keep"]:
            _remove(place)


def _remove(place: Path) -> None:
    # Without its manifest it no longer counts, so that a crash in between leaves no half checkpoint.
    (place / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(place)
