"""Pack documents into rows of tokens for a language model, and say which tokens count.

A row is a BOS and up to `context - 1` further tokens. Documents follow one another, each behind a
BOS; a row that begins inside a document gets a BOS of its own, which belongs to that document. A
row never holds training and held-out text together: attention reaches across a whole row.

Two sets of tokens follow from it, the same for every command:

- *kept* tokens have an activation row. Never kept: special tokens (BOS), the first positions of a
  row where that is asked for, and the last position of a row, which predicts nothing.
- *predictions that count* are made from a kept token, of a token of the same row and document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from saelab.errors import SaelabError, UsageError
from saelab.text.documents import Document, Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Packing = Literal["packed", "document"]

CHARACTERS_PER_CALL = 2_000_000
"""Text handed to the tokenizer at once: enough to use its threads, little beside a model in memory."""


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
    """The token that begins every row and document and stands nowhere else."""

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


def pack(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    packing: Packing = "packed",
    max_kept: int | None = None,
    keep_rule: KeepRule | None = None,
) -> TokenSequences:
    """Turn documents into rows of tokens; the same input gives the same tokens.

    Args:
        documents: Read in order, and only as many as are needed.
        tokenizer: Has a BOS (or, where a model knows none, an EOS that serves as one). Text that
            spells a special token is read as plain text and never becomes that token.
        context: Longest row in tokens, BOS included.
        packing: `packed` fills rows across documents; `document` begins a row with every document.
        max_kept: End the text when so many tokens are kept (fewer if the text ends before).
        keep_rule: Which tokens are kept.

    Raises:
        UsageError: The context cannot hold two tokens, the packing is unknown, or the text is empty.
    """
    if context < 2:
        raise UsageError(f"packing: context is {context}, a row needs at least 2 tokens (BOS and one more)")
    if packing not in ("packed", "document"):
        raise UsageError(f"packing: {packing!r} is unknown; choose packed or document")
    keep_rule = keep_rule or KeepRule()
    bos = bos_token_id(tokenizer)
    builder = _RowBuilder(context, bos, packing, keep_rule.mask_first_positions)
    for document, ids in _tokenized(documents, tokenizer):
        if max_kept is not None and builder.surely_kept >= max_kept:
            break
        if bos in ids:
            raise SaelabError(f"packing: the tokenizer made a BOS from the text of document {document.id!r}")
        if len(ids):
            builder.add(document, ids)
    if not builder.names:
        raise UsageError("packing: the documents hold no tokens")
    sequences = builder.finish(keep_rule, np.array(sorted({bos, *tokenizer.all_special_ids})))
    return sequences if max_kept is None else _cut_after(sequences, max_kept)


def bos_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that begins rows and documents.

    Raises:
        UsageError: The tokenizer has neither BOS nor EOS.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise UsageError(
        "packing: the tokenizer has neither a BOS nor an EOS token to begin rows with; set its bos_token"
    )


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


class _RowBuilder:
    """Appends documents to a growing stream of rows."""

    def __init__(self, context: int, bos: int, packing: Packing, mask_first_positions: int) -> None:
        self.context, self.packing, self.mask_first = context, packing, mask_first_positions
        self.bos = np.array([bos], dtype=np.int32)
        self.pieces: list[NDArray[np.int32]] = []
        self.row_starts: list[int] = []
        self.names: list[str] = []
        self.sources: list[str] = []
        self.heldout: list[bool] = []
        self.starts: list[int] = []
        self.n_tokens = 0
        self._eligible = 0

    @property
    def surely_kept(self) -> int:
        """Tokens that will be kept whatever follows: each row may lose one, its last."""
        return self._eligible - len(self.row_starts)

    def add(self, document: Document, ids: NDArray[np.int32]) -> None:
        heldout = document.split == "heldout"
        # A BOS in the last place of a row would be followed by a second one in the next row.
        room = self.context - self._filled() if self.row_starts else 0
        if room < 2 or self.packing == "document" or heldout != self.heldout[-1]:
            self.row_starts.append(self.n_tokens)
        self.names.append(document.id)
        self.sources.append(document.source)
        self.heldout.append(heldout)
        self.starts.append(self.n_tokens)
        done = 0
        while True:
            self._put(self.bos)
            piece = ids[done : done + self.context - self._filled()]
            self._eligible += max(0, len(piece) - max(0, self.mask_first - self._filled()))
            self._put(piece)
            done += len(piece)
            if done == len(ids):
                return
            self.row_starts.append(self.n_tokens)

    def finish(self, rule: KeepRule, special: NDArray[np.int64]) -> TokenSequences:
        tokens = np.concatenate(self.pieces)
        starts = np.array(self.starts, dtype=np.int64)
        row_starts = np.array([*self.row_starts, self.n_tokens], dtype=np.int64)
        keep = ~np.isin(tokens, special) if rule.mask_bos else np.ones(len(tokens), dtype=np.bool_)
        lengths = np.diff(row_starts)
        for position in range(min(rule.mask_first_positions, self.context)):
            keep[row_starts[:-1][lengths > position] + position] = False
        keep[row_starts[1:] - 1] = False
        documents = DocumentTable(
            ids=tuple(self.names),
            starts=starts,
            lengths=np.diff(starts, append=self.n_tokens),
            sources=tuple(self.sources),
            heldout=np.array(self.heldout, dtype=np.bool_),
        )
        return TokenSequences(
            tokens=tokens,
            row_starts=row_starts,
            keep=keep,
            documents=documents,
            bos_token_id=int(self.bos[0]),
        )

    def _filled(self) -> int:
        return self.n_tokens - self.row_starts[-1]

    def _put(self, piece: NDArray[np.int32]) -> None:
        self.pieces.append(piece)
        self.n_tokens += len(piece)


def _tokenized(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Document, NDArray[np.int32]]]:
    for group in _groups(documents):
        # split_special_tokens: text that spells a special token is only text.
        encoded = tokenizer(
            [document.text for document in group],
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
        for document, ids in zip(group, encoded["input_ids"], strict=True):
            yield document, np.array(ids, dtype=np.int32)


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document.text)
        if characters >= CHARACTERS_PER_CALL:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _cut_after(sequences: TokenSequences, max_kept: int) -> TokenSequences:
    """End the stream so that `max_kept` tokens are kept, the last of them with a successor in its row."""
    kept_before = np.cumsum(sequences.keep)
    if kept_before[-1] <= max_kept:
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
        ),
    )
