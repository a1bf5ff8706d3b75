"""The tokens that an index was made from: rows, documents, and windows around a token."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saelab.activations import layout
from saelab.errors import DamagedFileError, UsageError


class IndexedCorpus:
    """The corpus of an index, mapped from its files.

    Args:
        folder: The index.
        n_tokens: Tokens that its manifest speaks of.
        n_rows: Rows of tokens.
        has_roles: Whether it is of conversations.
    """

    def __init__(self, folder: Path, n_tokens: int, n_rows: int, *, has_roles: bool) -> None:
        self._folder = folder
        self._n_tokens, self._n_rows, self._has_roles = n_tokens, n_rows, has_roles

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        """Ids of all tokens ``[n_tokens]``."""
        return layout.map_array(self._folder / layout.TOKENS, "<i4", self._n_tokens)

    @cached_property
    def row_starts(self) -> NDArray[np.int64]:
        """Where each row of tokens starts, and at the end the number of tokens ``[n_rows + 1]``."""
        path = self._folder / layout.ROWS
        starts = layout.map_array(path, "<i8", self._n_rows + 1)
        if starts[0] != 0 or starts[-1] != self._n_tokens or (np.diff(starts) <= 0).any():
            raise DamagedFileError(f"{path}: the rows do not follow one another")
        return starts

    @cached_property
    def keep(self) -> NDArray[np.bool_]:
        """Whether each token was looked at ``[n_tokens]``."""
        return layout.read_bits(self._folder / layout.KEEP, self._n_tokens)

    @cached_property
    def roles(self) -> NDArray[np.uint8] | None:
        """Role of every token of conversations, a code of `saelab.text.chat.ROLES`, + 128 where special, else None."""
        return layout.read_roles(self._folder / layout.ROLES, self._n_tokens) if self._has_roles else None

    @cached_property
    def documents(self) -> pa.Table:
        """The documents: id, start, length, source, split, and whatever columns were kept."""
        table = layout.read_documents(self._folder / layout.DOCUMENTS)
        layout.document_table(table, self._n_tokens, self._folder / layout.DOCUMENTS)
        return table

    def row_of(self, position: int) -> int:
        """Return the row of tokens that holds a position.

        Raises:
            UsageError: There is no such position.
        """
        self._require(position)
        return int(np.searchsorted(self.row_starts, position, side="right")) - 1

    def document_of(self, position: int) -> int:
        """Return the number of the document that a position belongs to.

        Raises:
            UsageError: There is no such position.
        """
        self._require(position)
        return int(np.searchsorted(self._document_starts, position, side="right")) - 1

    def window(self, position: int, context: int | None) -> tuple[int, int]:
        """Return the first position shown around a token, and the one behind the last; within its row and document.

        Args:
            position: The token.
            context: Tokens on either side; None for all.

        Raises:
            UsageError: There is no such position.
        """
        row = self.row_of(position)
        starts, document = self._document_starts, self.document_of(position)
        first = max(int(self.row_starts[row]), int(starts[document]))
        end = int(self.row_starts[row + 1])
        if document + 1 < len(starts):
            end = min(end, int(starts[document + 1]))
        if context is None:
            return first, end
        return max(first, position - context), min(end, position + context + 1)

    @cached_property
    def _document_starts(self) -> NDArray[np.int64]:
        return self.documents["start"].to_numpy()

    def _require(self, position: int) -> None:
        if not 0 <= position < self._n_tokens:
            raise UsageError(
                f"index: there is no token {position:,}; positions go from 0 to {self._n_tokens - 1:,}"
            )
