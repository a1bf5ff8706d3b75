"""Labels from a file to a run, and from a run to a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saelab.errors import UsageError
from saelab.features.labels.label import Label
from saelab.features.labels.neuronpedia import Source, explanation_line
from saelab.features.labels.places import MOST_LABELS, add_labels, label_lines, labels_folder, read_labels
from saelab.features.labels.reading import read_label_file
from saelab.sae.files import load_sae_config, sae_identity
from saelab.storage.files import write_bytes
from saelab.training.run import SAE

LabelFormat = Literal["saelab", "neuronpedia"]
SHOWN = 20
"""Refused lines that are named one by one."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of a file's lines."""

    folder: Path
    """Where the labels are."""
    added: int
    """New labels."""
    unchanged: int
    """Labels that were there already, or twice in the file."""
    refused: int
    """Lines that are no label of this SAE."""
    reasons: tuple[str, ...]
    """The first `SHOWN` of them, one sentence each with the line's number."""


def import_labels(
    run: Path, file: Path, out: Path | None = None, *, allow_unknown_sae: bool = False
) -> Imported:
    """Add the labels of a file to those of a run's SAE.

    Lines that are no label, or of a feature that there is not, are refused one by one; what was there stays.

    Args:
        run: Folder of a finished run.
        file: See `saelab.features.labels.reading`.
        out: An overlay, for a run that is read-only.
        allow_unknown_sae: Take a file of Neuronpedia's, whose names for an SAE say nothing of its identity.

    Raises:
        UsageError: The file names another SAE or several, or is of one that cannot be compared; it cannot be read, or
            holds no label. Nothing was added.
        SaelabError: The labels cannot be written.
        DamagedFileError: The run's SAE or its labels are damaged.
    """
    identity, d_sae = sae_identity(run / SAE), load_sae_config(run / SAE).d_sae
    source: Source | None = None
    found: list[Label] = []
    reasons: list[str] = []
    refused = 0
    for line in read_label_file(file):
        where = f"labels: {file}, line {line.number}:"
        if line.identity not in (None, identity):
            raise UsageError(f"{where} it is of another SAE ({line.identity}) than {run / SAE} ({identity})")
        if line.source is not None and line.source != (source := source or line.source):
            raise UsageError(
                f"{where} it is of {_name(line.source)}, lines before of {_name(source)}; give a file of one SAE"
            )
        if line.source is not None and line.identity is None:
            _check_unknown(where, line.source, line.label, run, d_sae, allow_unknown_sae)
        why = line.why
        if line.label is not None and line.label.feature >= d_sae:
            why = f"there is no feature {line.label.feature:,}; the SAE has {d_sae:,}"
        if line.label is None or why:
            refused += 1
            reasons += [f"line {line.number}: {why}"] if refused <= SHOWN else []
            continue
        found.append(line.label)
        if len(found) > MOST_LABELS:
            raise UsageError(f"{where} more than {MOST_LABELS:,} labels of one SAE are not kept")
    if not found:
        raise UsageError(f"labels: {file} holds no label of this SAE{f' ({reasons[0]})' if reasons else ''}")
    added, unchanged = add_labels(run, found, out)
    return Imported(
        folder=labels_folder(run, out),
        added=added,
        unchanged=unchanged,
        refused=refused,
        reasons=tuple(reasons),
    )


def export_labels(
    run: Path, file: Path, to: LabelFormat = "saelab", source: Source | None = None, out: Path | None = None
) -> int:
    """Write all labels of a run's SAE into a new file.

    Args:
        run: Folder of a finished run.
        file: Its name ends in .jsonl.
        to: ``saelab``: every field, and the SAE's identity. ``neuronpedia``: explanation lines.
        source: What Neuronpedia calls the SAE; needed for its lines.
        out: The overlay in which the labels are.

    Returns:
        How many labels were written.

    Raises:
        UsageError: There are none, the file is there already, or a name is missing.
        SaelabError: The file cannot be written.
        DamagedFileError: The labels are damaged.
    """
    if not file.name.lower().endswith(".jsonl"):
        raise UsageError(f"labels: give a file whose name ends in .jsonl, not {file}")
    if file.exists() or file.is_symlink():
        raise UsageError(f"labels: {file} is there already; choose another name")
    labels = read_labels(run, out)
    if not labels:
        raise UsageError(f"labels: {labels_folder(run, out)} holds none; import some first")
    identity = sae_identity(run / SAE)
    if to == "saelab":
        content = label_lines(labels, identity)
    else:
        if source is None or not (source.model_id and source.source_id):
            raise UsageError("labels: say with --model-id and --source-id what Neuronpedia calls the SAE")
        lines = (explanation_line(label, source, identity) for label in labels)
        content = b"".join(json.dumps(line, allow_nan=False).encode() + b"\n" for line in lines)
    write_bytes(file, content)
    return len(labels)


def _check_unknown(
    where: str, source: Source, label: Label | None, run: Path, d_sae: int, allowed: bool
) -> None:
    """Refuse a file whose SAE may be another one, and one that has a feature too many to be of this one."""
    if label is not None and label.feature >= d_sae:
        raise UsageError(
            f"{where} it is of feature {label.feature:,} of {_name(source)}; {run / SAE} has {d_sae:,}, so that "
            "the labels are of another SAE"
        )
    if not allowed:
        raise UsageError(
            f"{where} it is of {_name(source)}, which cannot be compared with {run / SAE}; if you know that they "
            "are the same SAE, say so with --allow-unknown-sae"
        )


def _name(source: Source) -> str:
    return f"{source.model_id or 'unnamed'}/{source.source_id or 'unnamed'}"
