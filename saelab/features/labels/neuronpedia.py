"""Neuronpedia's explanation lines (their export and import format): one JSON object a line, every line the same keys.

Their columns come from the keys of the first line alone, and lines of a known id are left out there, so every line has
all keys and ids follow from what a line says. Their authors are users of their site, so that who wrote one of our
labels stands in `notes` beside the identity of the SAE.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from saelab.errors import UsageError
from saelab.features.labels.label import Label, make_label

EPOCH = "1970-01-01T00:00:00.000Z"
"""The date where none is given, so that the same export has the same bytes."""
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
CREATOR = "clkht01d40000jv08hvalcvly"
"""The user whom their own converters name where nobody is named (read in their source, not tried)."""
_NOTE = re.compile(r"saelab sae ([0-9a-f]{32})(?:, by (.+))?")


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
    label: Label, source: Source, identity: str, creator: str = CREATOR, created: str = EPOCH
) -> dict[str, Any]:
    """Return a label as they have it.

    Args:
        label: The label. Its score has no place there.
        source: The SAE's names there.
        identity: The SAE's identity here.
        creator: Id of the user there.
        created: ISO 8601, where the label has no such date.
    """
    by = f", by {label.author}" if label.author else ""
    return {
        "id": stable_id(source.model_id, source.source_id, *label.key),
        "modelId": source.model_id,
        "layer": source.source_id,
        "index": str(label.feature),
        "description": label.text,
        "authorId": creator,
        "embedding": None,
        "triggeredById": None,
        "typeName": None,
        "explanationModelName": label.model,
        "notes": f"saelab sae {identity}{by}",
        "createdAt": label.created if label.created and is_date(label.created) else created,
    }


def is_date(text: str) -> bool:
    """Whether a text is a date in ISO 8601."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def is_explanation(raw: Mapping[str, Any]) -> bool:
    """Whether a JSON object is one of these lines."""
    return "index" in raw and "description" in raw


def label_of(raw: Mapping[str, Any]) -> Label:
    """Read a line; UsageError where a value is not what it should be, as one clause."""
    note = _note(raw)
    author = note[2] if note else raw.get("authorId")
    model = raw.get("explanationModelName")
    return make_label(raw["index"], raw["description"], author, None, raw.get("createdAt"), model)


def identity_of(raw: Mapping[str, Any]) -> str | None:
    """Return the SAE that a line of ours names; None for lines of others."""
    note = _note(raw)
    return note[1] if note else None


def _note(raw: Mapping[str, Any]) -> re.Match[str] | None:
    notes = raw.get("notes")
    return _NOTE.fullmatch(notes) if isinstance(notes, str) else None


def source_of(raw: Mapping[str, Any]) -> Source:
    """Return which SAE of theirs a line is of; empty names where it does not say.

    Raises:
        UsageError: They are no text.
    """
    model, layer = raw.get("modelId", ""), raw.get("layer", "")
    if not isinstance(model, str) or not isinstance(layer, str):
        raise UsageError("modelId and layer are text")
    return Source(model_id=model, source_id=layer)
