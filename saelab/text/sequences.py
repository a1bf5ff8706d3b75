"""Rows of tokens with their documents, which of the tokens are kept, and which predictions count.

Two sets of tokens, the same for every command:

- *kept* tokens have an activation row. Never kept: special tokens (BOS), the first positions of a
  row where that is asked for, and the last position of a row, which predicts nothing.
- *predictions that count* are made from a kept token, of a token of the same row and document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from saelab.text.documents import ColumnValue, Split


@dataclass(frozen=True, kw_only=True)
class KeepRule:
    """Which tokens have an activation row."""

    mask_bos: bool = True
    """Leave out BOS and other special tokens, whose activations are outliers in most models."""
    mask_first_positions: int = 0
    """Leave out so many first positions of every row, BOS included."""


@dataclass(frozen=True, kw_only=True)
class DocumentTable:
    """The packed documents, in the order of their tokens; each owns one stretch of the token stream."""

    ids: tuple[str, ...]
    """Stable names."""
    starts: NDArray[np.int64]
    """Position of each document's first token (a BOS)."""
    lengths: NDArray[np.int64]
    """Tokens of each document, with every BOS that stands in it."""
    sources: tuple[str, ...]
    """Which text source each came from."""
    heldout: NDArray[np.bool_]
    """Whether each is held out."""
    columns: Mapping[str, tuple[ColumnValue, ...]] = field(default_factory=dict)
    """Values kept from the data, by name, one for each document."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class TokenSequences:
    """Tokens in rows, with their documents."""

    tokens: NDArray[np.int32]
    """All tokens, row after row, `[n]`."""
    row_starts: NDArray[np.int64]
    """Position of each row's first token, and at the end the number of tokens, `[rows + 1]`."""
    keep: NDArray[np.bool_]
    """Whether a token has an activation row, `[n]`."""
    documents: DocumentTable
    """The documents, in order."""
    bos_token_id: int
    """The token that begins every row and document and fills rows up: in text it stands nowhere else; rows
    of conversations may hold it again where their template writes it, or not begin with it where the
    tokenizer has no BOS."""
    roles: NDArray[np.uint8] | None = None
    """Of conversations: the role of each token, a code of `saelab.text.chat.ROLES`, with 0x80 added for
    special tokens, `[n]`."""
    chat_template: str | None = None
    """Of conversations: the Jinja template that rendered them."""
    notes: tuple[str, ...] = ()
    """What a user should know: conversations that were cut or left out."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.row_starts) - 1

    def document_of_token(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index of the document that each token position belongs to."""
        return np.searchsorted(self.documents.starts, positions, side="right") - 1

    def rows_of_split(self, split: Split) -> NDArray[np.int64]:
        """Return the indices of the rows that belong to a split (a row belongs to exactly one)."""
        first = self.document_of_token(self.row_starts[:-1])
        return np.flatnonzero(self.documents.heldout[first] == (split == "heldout"))


def predictions_that_count(sequences: TokenSequences) -> NDArray[np.bool_]:
    """Tell for every token whether the prediction made from it, of the next token, counts.

    It counts if the token is kept and the next one stands in the same row, belongs to the same
    document and is not a BOS.

    Returns:
        Bool `[n]`.
    """
    counts = sequences.keep.copy()
    counts[:-1] &= sequences.tokens[1:] != sequences.bos_token_id
    counts[sequences.row_starts[1:] - 1] = False
    counts[sequences.documents.starts[1:] - 1] = False
    return counts


def cut_after(sequences: TokenSequences, max_kept: int) -> TokenSequences:
    """End the stream so that `max_kept` tokens are kept, the last of them with a successor in its row."""
    kept_before = np.cumsum(sequences.keep)
    if kept_before[-1] < max_kept:
        return sequences
    n_tokens = int(np.searchsorted(kept_before, max_kept)) + 2
    n_rows = int(np.searchsorted(sequences.row_starts, n_tokens))
    keep = sequences.keep[:n_tokens].copy()
    keep[-1] = False
    table = sequences.documents
    n_documents = int(np.searchsorted(table.starts, n_tokens))
    starts = table.starts[:n_documents]
    return replace(
        sequences,
        tokens=sequences.tokens[:n_tokens].copy(),
        row_starts=np.append(sequences.row_starts[:n_rows], n_tokens),
        keep=keep,
        documents=DocumentTable(
            ids=table.ids[:n_documents],
            starts=starts,
            lengths=np.diff(starts, append=n_tokens),
            sources=table.sources[:n_documents],
            heldout=table.heldout[:n_documents],
            columns={name: values[:n_documents] for name, values in table.columns.items()},
        ),
        roles=None if sequences.roles is None else sequences.roles[:n_tokens].copy(),
    )
