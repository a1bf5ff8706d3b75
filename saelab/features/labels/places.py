"""Where labels are kept, and how labels are added to them without losing one.

```
RUN/labels/manifest.json labels.jsonl
OVERLAY/<identity of the SAE>/labels/    the same, for runs that are read-only
```

`labels.jsonl` holds one label a line, the newest last. The manifest names the SAE by its identity, so that labels are
never shown for another one. Where an import was interrupted, the manifest lists no file, and the file that is there is
the old one or the new one, whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from saelab.errors import DamagedFileError, UsageError
from saelab.features.labels.label import Label, shown_labels
from saelab.sae.files import sae_identity
from saelab.storage.files import remove_leftovers, write_bytes
from saelab.storage.lock import locked
from saelab.storage.manifest import MANIFEST_NAME, check_file, read_manifest, resolve_inside, write_manifest
from saelab.text.files import bounded_lines
from saelab.training.run import SAE

LABELS = "labels"
FILE = "labels.jsonl"
LONGEST_LINE = 1 << 20
"""Bytes of a line of any file of labels: an embedding of a few thousand numbers has its place."""
MOST_LABELS = 4_000_000
"""Labels of one SAE at most, held in memory."""


def labels_folder(run: Path, out: Path | None = None) -> Path:
    """Return the folder of a run's labels: its own, or the one in the overlay ``out``."""
    return run / LABELS if out is None else out / sae_identity(run / SAE) / LABELS


def read_labels(run: Path, out: Path | None = None) -> tuple[Label, ...]:
    """Return the labels of a run's SAE, the oldest first; none where none were imported.

    Raises:
        UsageError: Those that are there are of another SAE.
        DamagedFileError: They are not what their manifest says.
    """
    folder = labels_folder(run, out)
    if not (folder / MANIFEST_NAME).exists():
        return ()
    manifest = read_manifest(folder, LABELS)
    of, identity = manifest.content.get("sae_identity"), sae_identity(run / SAE)
    if of != identity:
        raise UsageError(
            f"{folder} holds labels of another SAE ({of}) than {run / SAE} ({identity}); move that folder away"
        )
    if FILE in manifest.files:
        check_file(folder, FILE, manifest)
    path = resolve_inside(folder, FILE)
    return tuple(_parsed(path)) if path.exists() else ()


def shown_labels_of(run: Path, out: Path | None = None) -> dict[int, str]:
    """Return the label that is shown of each feature: of the run's labels, and of those in the overlay.

    Raises:
        UsageError: They are of another SAE.
        DamagedFileError: They are not what their manifest says.
    """
    return shown_labels([*read_labels(run), *(() if out is None else read_labels(run, out))])


def add_labels(run: Path, labels: Iterable[Label], out: Path | None = None) -> tuple[int, int]:
    """Add labels to those that are there; the same label twice is kept once, the older one.

    Args:
        run: Folder of a run.
        labels: New ones, the newest last.
        out: An overlay, for a run that is read-only.

    Returns:
        How many were added, and how many were there already.

    Raises:
        SaelabError: The folder cannot be written, or is in use.
        UsageError: The labels there are of another SAE, there would be too many, or the run is read-only.
    """
    folder = labels_folder(run, out)
    if out is None and not os.access(folder if folder.exists() else run, os.W_OK | os.X_OK):
        raise UsageError(f"{run} cannot be written; keep its labels elsewhere with --out FOLDER")
    with locked(folder, LABELS):
        remove_leftovers(folder)
        there = read_labels(run, out)
        known = {label.key for label in there}
        new: list[Label] = []
        n_seen = 0
        for label in labels:
            n_seen += 1
            if label.key not in known:
                known.add(label.key)
                new.append(label)
            if len(known) > MOST_LABELS:
                raise UsageError(f"labels: more than {MOST_LABELS:,} labels of one SAE are not kept")
        if new:
            _write(run, folder, (*there, *new))
    return len(new), n_seen - len(new)


def label_lines(labels: Iterable[Label], identity: str | None = None) -> bytes:
    """Return labels as JSON lines; with the identity of their SAE in each where it is given."""
    named = {} if identity is None else {"sae": identity}
    return b"".join(
        json.dumps(label.to_json() | named, sort_keys=True, allow_nan=False).encode() + b"\n"
        for label in labels
    )


def _write(run: Path, folder: Path, labels: tuple[Label, ...]) -> None:
    content = {"run": run.name, "sae_identity": sae_identity(run / SAE), "n_labels": len(labels)}
    write_manifest(folder, LABELS, [], content)
    write_bytes(folder / FILE, label_lines(labels))
    write_manifest(folder, LABELS, [FILE], content)


def _parsed(path: Path) -> Iterator[Label]:
    try:
        for number, line in enumerate(bounded_lines(path, LABELS, LONGEST_LINE), start=1):
            yield _label(line, f"{path}, line {number}")
    except OSError as error:
        raise DamagedFileError(f"cannot read {path}: {error.strerror}") from error


def _label(line: bytes, where: str) -> Label:
    try:
        raw = json.loads(line)
        if not isinstance(raw, dict):
            raise UsageError("it is no JSON object")
        return Label.from_json(raw)
    except (ValueError, RecursionError, UsageError) as error:
        raise DamagedFileError(f"{where}: {error}") from error
