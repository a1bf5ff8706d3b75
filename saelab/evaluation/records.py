"""Where an evaluation's record is kept: in the run, or beside other people's read-only runs in a folder of one's own.

```
RUN/evaluations/NAME.json                        manifest.json lists the records
OVERLAY/<identity of the SAE>/evaluations/NAME.json   the same, joined to the run by the SAE's identity
```
"""

from __future__ import annotations

import os
from pathlib import Path

from saelab.errors import DamagedFileError, UsageError
from saelab.evaluation.origin import Origin, describe_origin, same_origin
from saelab.evaluation.result import Evaluation
from saelab.sae.files import sae_identity
from saelab.storage.files import read_json, remove_leftovers, write_json
from saelab.storage.lock import locked
from saelab.storage.manifest import MANIFEST_NAME, read_manifest, write_manifest
from saelab.training.run import SAE, Run

EVALUATIONS = "evaluations"


def check_record_name(name: str) -> None:
    """Refuse a name that cannot be a record's.

    Raises:
        UsageError: It is empty, reserved, or holds anything but letters, digits, - and _.
    """
    if not name.replace("-", "").replace("_", "").isalnum() or f"{name}.json" == MANIFEST_NAME:
        raise UsageError(f"{name!r} cannot name a record; use letters, digits, - and _")


def evaluations_folder(run: Run, out: Path | None = None) -> Path:
    """Return the folder of a run's evaluations: its own, or the one in the overlay ``out``."""
    return run.path / EVALUATIONS if out is None else out / sae_identity(run.path / SAE) / EVALUATIONS


def require_writable(run: Run, out: Path | None) -> None:
    """Refuse to begin where the record could not be kept.

    Raises:
        UsageError: The run is read-only and no overlay was given, or the overlay cannot be written.
    """
    folder = evaluations_folder(run, out)
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return
    if out is None:
        raise UsageError(f"{run.path} cannot be written; keep its evaluation elsewhere with --out FOLDER")
    raise UsageError(f"{out} cannot be written; give another folder with --out")


def require_same_origin(run: Run, name: str, origin: Origin, out: Path | None) -> None:
    """Refuse to replace a record whose tokens came from elsewhere; a damaged one may be replaced.

    Raises:
        UsageError: There is one of that name.
    """
    file = evaluations_folder(run, out) / f"{name}.json"
    try:
        record = read_json(file) if file.exists() else None
    except DamagedFileError:
        return
    if not isinstance(record, dict):
        return
    source = record.get("source")
    if isinstance(source, dict) and same_origin(source, origin.to_json()):
        return
    what = describe_origin(source) if isinstance(source, dict) else "it does not say which tokens"
    raise UsageError(
        f"{file} is the record of another evaluation ({what}); keep this one under another name with --name"
    )


def write_record(run: Run, name: str, evaluation: Evaluation, out: Path | None = None) -> Path:
    """Add or replace one record.

    Entries of other records stay as they are, so that damage to them stays visible.

    Returns:
        The record's file.

    Raises:
        SaelabError: The folder cannot be written or is in use.
    """
    folder, file = evaluations_folder(run, out), f"{name}.json"
    identity = sae_identity(run.path / SAE)
    record = evaluation.to_json() | {"run": run.path.name, "sae_identity": identity}
    content = {"run": run.path.name, "sae_identity": identity}
    with locked(folder, "evaluate"):
        remove_leftovers(folder)
        known = {}
        if (folder / MANIFEST_NAME).exists():
            known = {k: v for k, v in read_manifest(folder, "evaluations").files.items() if k != file}
            write_manifest(folder, "evaluations", [], content, known)
        write_json(folder / file, record)
        write_manifest(folder, "evaluations", [file], content, known)
    return folder / file
