"""A document: the unit in which text is read, split into train and held-out, and never mixed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

Split = Literal["train", "heldout"]

HELDOUT_SHARE = 0.05
"""Share of documents held out: enough for stable metrics, little enough to keep the training text."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text with a stable name."""

    id: str
    """Stable name of the document; the split is decided by its hash."""
    text: str
    """The text itself."""
    source: str
    """Which text source it came from, for example ``stdlib``."""
    split: Split = "train"
    """Whether the document may be trained on."""


def split_of(document_id: str, heldout_share: float = HELDOUT_SHARE) -> Split:
    """Decide the split of a document by the hash of its id, so that it never depends on order."""
    digest = hashlib.blake2b(document_id.encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "little") / 2**64 < heldout_share else "train"


def with_splits(documents: Iterable[Document], heldout_share: float = HELDOUT_SHARE) -> Iterator[Document]:
    """Yield the documents with their split filled in."""
    for document in documents:
        yield replace(document, split=split_of(document.id, heldout_share))


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
