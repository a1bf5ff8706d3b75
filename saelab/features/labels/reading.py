"""Files of labels that may come from a stranger: ours, Neuronpedia's explanation lines, and plain tables.

| file | a line |
|---|---|
| .jsonl, .jsonl.gz | Neuronpedia: `{"modelId", "layer", "index", "description", "authorId", ...}` |
| .jsonl, .jsonl.gz | `{"feature", "label" or "text"}`, if any `author`, `model`, `score`, `created`, `sae` |
| .csv | a header with the columns `feature` and `label`, if any the same others |
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.errors import UsageError
from saelab.features.labels.label import Label, make_label
from saelab.features.labels.neuronpedia import (
    Source,
    identity_of,
    is_explanation,
    label_of,
    source_of,
)
from saelab.features.labels.places import LONGEST_LINE
from saelab.text.files import bounded_lines

KINDS = (".jsonl", ".jsonl.gz", ".csv")


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a line of a file says."""

    number: int
    """Its number in the file, from 1."""
    label: Label | None
    """The label; None where it is refused."""
    why: str = ""
    """Why it is refused, as a clause."""
    identity: str | None = None
    """The SAE of ours that it names."""
    source: Source | None = None
    """The SAE of Neuronpedia that it names."""


def read_label_file(path: Path) -> Iterator[Line]:
    """Read the lines of a file of labels, one at a time; empty ones are left out.

    Raises:
        UsageError: The file cannot be read, is of no known kind, or a line is too long; packed ones that unpack to far
            too much are refused too.
    """
    if not path.name.lower().endswith(KINDS):
        raise UsageError(f"labels: {path} is not a {', '.join(KINDS[:-1])} or {KINDS[-1]} file")
    try:
        yield from _read_csv(path) if path.name.lower().endswith(".csv") else _read_jsonl(path)
    except OSError as error:
        raise UsageError(f"labels: cannot read {path}: {error.strerror or error}") from error


def _read_jsonl(path: Path) -> Iterator[Line]:
    for number, line in enumerate(bounded_lines(path, "labels", LONGEST_LINE), start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError):
            yield Line(number=number, label=None, why="it is no JSON")
            continue
        yield _line(number, raw)


def _read_csv(path: Path) -> Iterator[Line]:
    rows = csv.reader(_text(path), strict=True)
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        if "feature" not in header or not {"label", "text"} & set(header):
            raise UsageError(f"labels: the first line of {path} does not name the columns feature and label")
        for row in rows:
            if len(row) == len(header):
                named = {name: value or None for name, value in zip(header, row, strict=True)}
                yield _line(rows.line_num, named)
            elif row:
                why = f"it has {len(row)} columns, the header {len(header)}"
                yield Line(number=rows.line_num, label=None, why=why)
    except csv.Error as error:
        raise UsageError(f"labels: {path}, line {rows.line_num}: {error}") from error


def _text(path: Path) -> Iterator[str]:
    for number, line in enumerate(bounded_lines(path, "labels", LONGEST_LINE), start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").replace("\0", " ")
        except UnicodeDecodeError as error:
            raise UsageError(f"labels: {path}, line {number}: it is not UTF-8; convert it first") from error


def _line(number: int, raw: Any) -> Line:
    try:
        if not isinstance(raw, dict):
            raise UsageError("it is no JSON object")
        if is_explanation(raw):
            return Line(number=number, label=label_of(raw), identity=identity_of(raw), source=source_of(raw))
        return Line(number=number, label=_plain(raw), identity=_identity(raw))
    except UsageError as error:
        return Line(number=number, label=None, why=str(error))


def _plain(raw: Mapping[str, Any]) -> Label:
    text = raw.get("label", raw.get("text"))
    if "feature" not in raw or text is None:
        raise UsageError("it has no feature and label, and no index and description")
    facts = (raw.get(name) for name in ("author", "score", "created", "model"))
    return make_label(raw["feature"], text, *facts)


def _identity(raw: Mapping[str, Any]) -> str | None:
    named = raw.get("sae")
    if named is not None and not isinstance(named, str):
        raise UsageError("the identity of its SAE is no text")
    return named
