"""Where the tokens of an evaluation come from, as its record says it. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from saelab.lm.spec import ModelSpec
from saelab.text.spec import TextSpec


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the tokens of an evaluation come from."""

    kind: Literal["own", "store", "text", "model"]
    """The run's own held-out documents, a store, a text, or the run's own text read by another model."""
    store: str | None = None
    """Path of the store, where there is one."""
    store_identity: str | None = None
    """Identity of that store."""
    text: TextSpec | None = None
    """The text, where it was read for the evaluation."""
    model: ModelSpec | None = None
    """The model that read it."""
    packing: str | None = None
    """How the text was packed."""

    @property
    def record_name(self) -> str:
        """Name of the record where none was given."""
        parts = [self.kind]
        if self.kind == "own":
            return "heldout"
        if self.store is not None:
            parts.append(_slug(self.store))
        if self.kind == "text" and self.text is not None:
            parts.append(_slug(self.text.source))
        if self.kind == "model" and self.model is not None:
            parts.append(_slug(self.model.name))
        return "-".join(part for part in parts if part)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        text, model = self.text, self.model
        return {
            "kind": self.kind,
            "store": self.store,
            "store_identity": self.store_identity,
            "text": None
            if text is None
            else {
                name: getattr(text, name)
                for name in ("source", "subset", "split", "revision", "column", "heldout_share")
            },
            "model": None
            if model is None
            else {name: getattr(model, name) for name in ("name", "revision", "adapter")},
            "packing": self.packing,
        }


def describe_origin(source: Mapping[str, Any]) -> str:
    """Say in words which tokens an origin, as it is recorded, stands for."""
    if source["kind"] == "own":
        return "held-out tokens"
    if source["kind"] == "store":
        return f"tokens of the store {source['store']}"
    if source["kind"] == "text":
        return f"tokens of the text {source['text']['source']}"
    return f"held-out tokens, read by {source['model']['name']}"


def same_origin(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two origins, as they are recorded, are the same; another spelling of a path is no other origin."""
    if one.get("kind") == other.get("kind") == "own":
        return True
    return _without_spelling(one) == _without_spelling(other)


def _without_spelling(source: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in source.items() if key != "store"}  # its identity says which it is
    for part, key in (("text", "source"), ("model", "name")):
        if isinstance(value := found.get(part), Mapping) and isinstance(value.get(key), str):
            found[part] = dict(value) | {key: str(Path(value[key]).expanduser().resolve())}
    return found


def _slug(path: str) -> str:
    name = Path(path).name or path
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")
