"""Neuronpedia's explanation lines (their export and import format): one JSON object a line, every line the same keys.

Their columns come from the keys of the first line alone, and lines of a known id are left out there, so every line has
all keys and ids follow from what a line says. The identity of our SAE stands in `notes`, which their importer keeps.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saelab.errors import UsageError
from saelab.features.labels.label import Label, make_label

EPOCH = "1970-01-01T00:00:00.000Z"
"""The date where none is given, so that the same export has the same bytes."""
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_NOTE = re.compile(r"saelab sae ([0-9a-f]{32})")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What Neuronpedia calls an SAE."""

    model_id: str
    """Name of the language model there."""
    source_id: str
    """Name of the SAE there, layer and set: ``6-res-jb``."""


def stable_id(*parts: object) -> str:
    """Return an id of 25 characters that starts with c, as theirs do, and follows from its parts."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=24).digest()
    return "c" + "".join(_DIGITS[byte % 36] for byte in digest)


def explanation_line(
    label: Label, source: Source, identity: str, author: str, created: str = EPOCH
) -> dict[str, Any]:
    """Return a label as they have it.

    Args:
        label: The label. Its score has no place there.
        source: The SAE's names there.
        identity: The SAE's identity here.
        author: Id of the author there, where the label names none.
        created: ISO 8601, where the label has no date.
    """
    return {
        "id": stable_id(source.model_id, source.source_id, *label.key),
        "modelId": source.model_id,
        "layer": source.source_id,
        "index": str(label.feature),
        "description": label.text,
        "authorId": label.author or author,
        "embedding": None,
        "triggeredById": None,
        "typeName": None,
        "explanationModelName": None,
        "notes": f"saelab sae {identity}",
        "createdAt": label.created or created,
    }


def is_explanation(raw: Mapping[str, Any]) -> bool:
    """Whether a JSON object is one of these lines."""
    return "index" in raw and "description" in raw


def label_of(raw: Mapping[str, Any]) -> Label:
    """Read a line; UsageError where a value is not what it should be, as one clause."""
    return make_label(
        raw["index"], raw["description"], raw.get("authorId") or None, None, raw.get("createdAt") or None
    )


def identity_of(raw: Mapping[str, Any]) -> str | None:
    """Return the SAE that a line of ours names; None for lines of others."""
    notes = raw.get("notes")
    found = _NOTE.search(notes) if isinstance(notes, str) else None
    return found[1] if found else None


def source_of(raw: Mapping[str, Any]) -> Source:
    """Return which SAE of theirs a line is of; empty names where it does not say.

    Raises:
        UsageError: They are no text.
    """
    model, layer = raw.get("modelId", ""), raw.get("layer", "")
    if not isinstance(model, str) or not isinstance(layer, str):
        raise UsageError("modelId and layer are text")
    return Source(model_id=model, source_id=layer)
