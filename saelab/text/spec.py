"""Which text to read: torch-free, so that the command line can show it without loading anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from saelab.errors import UsageError
from saelab.storage.places import whole_path
from saelab.text.documents import HELDOUT_SHARE
from saelab.text.sources import is_local_file, whole_source

CHAT_COLUMNS = ("messages", "conversations")
"""Columns that hold conversations: lists of turns instead of one text."""

DOCUMENT_COLUMNS = ("id", "start", "length", "source", "split")
"""Columns that every store's table of documents has; a kept column cannot have one of these names."""


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """A text source and how it is split."""

    source: str = "stdlib"
    """`stdlib`, `stdlib-with-tests`, .txt, .jsonl(.gz), .parquet files (one, a folder, a glob, or several joined
    by commas), or the name of a data set on the hub."""
    subset: str | None = None
    """Subset (configuration) of a hub data set; not needed where it has one alone."""
    split: str | None = None
    """Split of a hub data set that is read; None means `train`. Held-out documents are chosen inside it."""
    column: str = "text"
    """Field or column with the text; `messages` and `conversations` hold conversations."""
    streaming: bool = False
    """Read a hub data set over the network as it is needed instead of downloading it first."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set; None means the newest."""
    keep_columns: tuple[str, ...] = ()
    """Further fields of text, number or truth value that are kept beside each document."""
    chat_template: str | None = None
    """File with a Jinja chat template for conversations; None takes the tokenizer's own."""
    heldout_share: float = HELDOUT_SHARE
    """Share of the documents that is held out, chosen by the hash of the document's id; 1 holds out all."""
    only_heldout: bool = False
    """Read the held-out documents alone, for an evaluation."""

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise UsageError(
                "text: the source is empty; give `stdlib`, the path of a .txt, .jsonl or .parquet file, "
                "or the name of a data set on the hub"
            )
        if not 0.0 <= self.heldout_share <= 1.0:
            raise UsageError(f"text: heldout_share is {self.heldout_share}, it must be from 0 to 1")
        if not self.column:
            raise UsageError("text: the name of the column is empty; leave it out for `text`")
        if clash := [name for name in self.keep_columns if name in DOCUMENT_COLUMNS]:
            raise UsageError(
                f"text: the column {clash[0]!r} cannot be kept under that name, which the table of documents "
                "uses itself; rename it in the data"
            )
        if len(set(self.keep_columns)) < len(self.keep_columns):
            raise UsageError(f"text: a column is kept twice: {', '.join(self.keep_columns)}")

    @property
    def is_chat(self) -> bool:
        """Whether the column holds conversations."""
        return self.column in CHAT_COLUMNS

    def resolved(self) -> TextSpec:
        """Return the same text with absolute paths for what is local, so that it can be recorded.

        Built-in texts, hub names, and whatever is not there stay as they are. A local file is never streamed.
        """
        template = self.chat_template
        if template is not None and Path(template).expanduser().is_file():
            template = whole_path(template)
        return replace(
            self,
            source=whole_source(self.source),
            chat_template=template,
            streaming=self.streaming and not is_local_file(self.source),
        )
