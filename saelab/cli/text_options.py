"""Options of every command that reads text."""

from __future__ import annotations

from dataclasses import dataclass

from saelab.text.documents import HELDOUT_SHARE
from saelab.text.spec import TextSpec


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How a text source is read."""

    subset: str | None = None
    """Subset (configuration) of a hub data set."""
    split: str | None = None
    """Split of a hub data set; train where none is given."""
    column: str = "text"
    """Field with the text; ``messages`` or ``conversations`` for chats."""
    streaming: bool = False
    """Read a hub data set as it is needed instead of downloading it first."""
    text_revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    keep_columns: tuple[str, ...] = ()
    """Further fields to keep beside each document."""
    chat_template: str | None = None
    """File with a Jinja chat template, where the tokenizer has none of its own."""
    heldout_share: float | None = None
    """Share of the documents that is held out, chosen by the hash of their ids; 0.05 where none is given."""

    def text_spec(
        self, source: str, *, heldout_share: float = HELDOUT_SHARE, only_heldout: bool = False
    ) -> TextSpec:
        """Return the text that the options describe.

        Args:
            source: What was given as TEXT.
            heldout_share: Taken where the option was not given.
            only_heldout: Read the held-out documents alone.

        Raises:
            UsageError: An option is impossible.
        """
        return TextSpec(
            source=source,
            subset=self.subset,
            split=self.split,
            column=self.column,
            streaming=self.streaming,
            revision=self.text_revision,
            keep_columns=self.keep_columns,
            chat_template=self.chat_template,
            heldout_share=heldout_share if self.heldout_share is None else self.heldout_share,
            only_heldout=only_heldout,
        )
