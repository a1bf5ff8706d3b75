"""What lies in a folder: find saelab's folders by their manifests, and compare their files with them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.errors import DamagedFileError, UsageError
from saelab.storage.manifest import MANIFEST_NAME, check_file, read_manifest


@dataclass(frozen=True)
class Folder:
    """A finished saelab folder."""

    path: Path
    kind: str
    """``store``, ``run``, ``sae``...; ``unfinished`` for an interrupted run, ``damaged`` for an unreadable manifest."""
    n_bytes: int
    """Size of all files below it."""
    content: dict[str, Any]
    """What its manifest says of it."""


@dataclass(frozen=True)
class Verification:
    """The outcome of comparing a folder with its manifests."""

    manifests: int
    files: int
    n_bytes: int
    problems: list[str]
    """One line for each file that is missing, damaged or unreadable; empty where all is well."""


def find_manifests(path: Path) -> list[Path]:
    """Return the folders at and below a path that have a manifest, in order of their names.

    Raises:
        UsageError: The path is not a folder.
    """
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder")
    return sorted(found.parent for found in path.rglob(MANIFEST_NAME))


def verify_folder(path: Path) -> Verification:
    """Compare every file that a manifest at or below ``path`` lists with its size and checksum.

    Raises:
        UsageError: The path is not a folder, or there is nothing of saelab in it.
    """
    folders = find_manifests(path)
    if not folders:
        raise UsageError(f"{path} holds no finished saelab folder (there is no {MANIFEST_NAME})")
    problems, files, n_bytes = [], 0, 0
    for folder in folders:
        try:
            manifest = read_manifest(folder)
        except DamagedFileError as error:
            problems.append(str(error))
            continue
        for name, facts in manifest.files.items():
            files, n_bytes = files + 1, n_bytes + facts["bytes"]
            try:
                check_file(folder, name, manifest)
            except DamagedFileError as error:
                problems.append(str(error))
    return Verification(len(folders), files, n_bytes, problems)


def list_folders(path: Path) -> list[Folder]:
    """Return the stores and runs at and below a path; what lies inside a run is part of it."""
    found: list[Folder] = []
    for folder in find_manifests(path):
        if any(folder.is_relative_to(outer.path) for outer in found if outer.kind != "group"):
            continue
        if any(folder.is_relative_to(outer.path / "checkpoints") for outer in found):
            continue
        try:
            manifest = read_manifest(folder)
            kind, content = manifest.kind, manifest.content
        except DamagedFileError as error:
            kind, content = "damaged", {"problem": str(error)}
        if kind == "checkpoint" and folder.parent.parent.is_relative_to(path):
            # Checkpoints without a manifest above them: their run is not finished.
            folder, kind, content = folder.parent.parent, "unfinished", {}
        found.append(Folder(folder, kind, _size(folder), content))
    return found


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a trainer may be at work
            total += file.lstat().st_size if file.is_file() else 0
    return total
