"""Which text to read: torch-free, so that the command line can show it without loading anything."""

from __future__ import annotations

from dataclasses import dataclass

from saelab.errors import UsageError
from saelab.text.documents import HELDOUT_SHARE


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """A text source and how it is split."""

    source: str = "stdlib"
    """`stdlib`, `stdlib-with-tests`, or a .txt, .jsonl or .parquet file ("text" and, optional, "id")."""
    heldout_share: float = HELDOUT_SHARE
    """Share of the documents that is held out, chosen by the hash of the document's id; 1 holds out all."""
    only_heldout: bool = False
    """Read the held-out documents alone, for an evaluation."""

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise UsageError(
                "text: the source is empty; give `stdlib` or the path of a .txt, .jsonl or .parquet file"
            )
        if not 0.0 <= self.heldout_share <= 1.0:
            raise UsageError(f"text: heldout_share is {self.heldout_share}, it must be from 0 to 1")
