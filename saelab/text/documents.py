"""A document: the unit in which text is read, split into train and held-out, and never mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Split = Literal["train", "heldout"]

HELDOUT_SHARE = 0.05
"""Share of documents held out: enough for stable metrics, little enough to keep the training text."""


ColumnValue = str | int | float | bool | None
"""What a kept column may hold for a document; None where the document has no value."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text or conversation with a stable name."""

    id: str
    """Stable name of the document; the split is decided by its hash."""
    text: str
    """The text itself; empty for a conversation."""
    source: str
    """Which text source it came from, for example ``stdlib``."""
    split: Split = "train"
    """Whether the document may be trained on."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """The turns of a conversation, each with ``role`` and ``content`` and whatever else its template reads."""
    columns: Mapping[str, ColumnValue] = field(default_factory=dict)
    """Values that are kept beside the document."""

    @property
    def n_characters(self) -> int:
        """Length of the text, or of all turns."""
        return len(self.text) + sum(len(message["content"]) for message in self.messages)


def split_of(document_id: str, heldout_share: float = HELDOUT_SHARE) -> Split:
    """Decide the split of a document by the hash of its id, so that it never depends on order."""
    digest = hashlib.blake2b(document_id.encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "little") / 2**64 < heldout_share else "train"


def with_splits(documents: Iterable[Document], heldout_share: float = HELDOUT_SHARE) -> Iterator[Document]:
    """Yield the documents with their split filled in."""
    for document in documents:
        yield replace(document, split=split_of(document.id, heldout_share))


class TextHash:
    """The 128-bit blake2b of documents in order: equal hashes mean equal documents.

    Ids, splits and texts count, and where there are any, turns and kept columns.
    """

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, document: Document) -> None:
        """Take in the next document."""
        for part in (document.id, document.split, document.text):
            self._add(part.encode())
        if document.messages or document.columns:
            self._digest.update(b"\xff" * 8)  # no text is so long: what follows is no further document
            self._add(json.dumps([document.messages, document.columns], sort_keys=True).encode())

    def hexdigest(self) -> str:
        """Return the hash of the documents so far."""
        return self._digest.hexdigest()

    def _add(self, part: bytes) -> None:
        self._digest.update(len(part).to_bytes(8, "little"))
        self._digest.update(part)


def text_hash(documents: Iterable[Document]) -> str:
    """Return the hash of documents; see `TextHash`."""
    found = TextHash()
    for document in documents:
        found.add(document)
    return found.hexdigest()


def move_near_copies_to_train(documents: list[Document], max_shared_lines: float = 0.5) -> list[Document]:
    """Take documents out of the held-out split that are near copies of a training document.

    A held-out document moves to the training split when more than ``max_shared_lines`` of its
    distinct long lines (20 characters or more) stand in any one training document. Without this,
    copied files would make held-out numbers better than they are.
    """
    holders: dict[str, list[int]] = {}
    for index, document in enumerate(documents):
        if document.split == "train":
            for line in _long_lines(document.text):
                holders.setdefault(line, []).append(index)

    def is_near_copy(document: Document) -> bool:
        lines = _long_lines(document.text)
        shared: dict[int, int] = {}
        for line in lines:
            for index in holders.get(line, ()):
                shared[index] = shared.get(index, 0) + 1
        return bool(shared) and max(shared.values()) > max_shared_lines * len(lines)

    return [
        replace(document, split="train")
        if document.split == "heldout" and is_near_copy(document)
        else document
        for document in documents
    ]


def _long_lines(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if len(line.strip()) >= 20}
