"""Pack documents into rows of tokens for a language model.

A row of text is a BOS and up to `context - 1` further tokens. Documents follow one another, each
behind a BOS; a row that begins inside a document gets a BOS of its own, which belongs to that
document. A row never holds training and held-out text together: attention reaches across a whole
row. In a model that also reads backwards, packed documents would see one another in both
directions: there `document` is the sound packing.

A conversation is a row of its own, as its chat template writes it (`saelab.text.chat`): no
conversation sees another. One that is longer than the context is cut at the context, and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from saelab.errors import SaelabError, UsageError
from saelab.text.chat import SPECIAL, ChatRenderer
from saelab.text.columns import uniform_columns
from saelab.text.documents import ColumnValue, Document
from saelab.text.sequences import (
    DocumentTable,
    KeepRule,
    TokenSequences,
    cut_after,
    predictions_that_count,
)
from saelab.text.tokens import bos_token_id, own_bos_token_id, plain_ids, special_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "CHARACTERS_PER_CALL",
    "DocumentTable",
    "KeepRule",
    "NoTokensError",
    "Packing",
    "TokenSequences",
    "bos_token_id",
    "pack",
    "predictions_that_count",
]

Packing = Literal["packed", "document", "conversation"]
PACKINGS: tuple[Packing, ...] = ("packed", "document", "conversation")

CHARACTERS_PER_CALL = 2_000_000
"""Text handed to the tokenizer at once: enough to use its threads, little beside a model in memory."""


class NoTokensError(UsageError):
    """The documents hold no tokens."""


def pack(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    packing: Packing = "packed",
    max_kept: int | None = None,
    cut: bool = True,
    characters_per_call: int = CHARACTERS_PER_CALL,
    keep_rule: KeepRule | None = None,
    chat_template: str | None = None,
) -> TokenSequences:
    """Turn documents into rows of tokens; the same input gives the same tokens.

    Args:
        documents: Read in order, and only as many as are needed.
        tokenizer: Has a BOS (or, where a model knows none, a CLS or EOS that serves as one). Text that
            spells a special token is read as plain text and never becomes that token.
        context: Longest row in tokens, BOS included.
        packing: `packed` fills rows across documents; `document` begins a row with every document;
            `conversation` renders turns with a chat template, one conversation a row.
        max_kept: End the text when so many tokens are kept (fewer if the text ends before).
        cut: With `max_kept`: end exactly there; False ends with the document that reaches it.
        characters_per_call: Text that is read and tokenized at once, about.
        keep_rule: Which tokens are kept.
        chat_template: A Jinja template for conversations; None takes the tokenizer's own.

    Raises:
        UsageError: The context cannot hold two tokens, the packing is unknown, or the text is empty;
            for conversations, there is no template, or a document is none.
    """
    if context < 2:
        raise UsageError(f"packing: context is {context}, a row needs at least 2 tokens (BOS and one more)")
    if packing not in PACKINGS:
        raise UsageError(
            f"packing: {packing!r} is unknown; choose {', '.join(PACKINGS[:-1])} or {PACKINGS[-1]}"
        )
    keep_rule = keep_rule or KeepRule()
    special = special_token_ids(tokenizer)
    renderer = ChatRenderer(tokenizer, chat_template) if packing == "conversation" else None
    bos = bos_token_id(tokenizer)
    builder = _RowBuilder(context, bos, packing, keep_rule.mask_first_positions)
    for document, ids, roles in _tokenized(documents, tokenizer, renderer, characters_per_call):
        if max_kept is not None and builder.surely_kept >= max_kept:
            break
        if roles is not None:
            builder.add_conversation(document, ids, roles)
            continue
        if bos in ids:
            raise SaelabError(f"packing: the tokenizer made a BOS from the text of document {document.id!r}")
        if len(ids):
            builder.add(document, ids)
    notes = (*(renderer.notes() if renderer else ()), *builder.notes())
    if not builder.names:
        raise NoTokensError("; ".join(["packing: the documents hold no tokens", *notes]))
    if renderer is not None and own_bos_token_id(tokenizer) is None:
        bos = _filler(builder.pieces, tokenizer, bos)
    sequences = builder.finish(keep_rule, np.union1d(special, [bos]), bos, notes)
    if renderer is not None:
        sequences = replace(sequences, chat_template=renderer.template)
    return sequences if max_kept is None or not cut else cut_after(sequences, max_kept)


def _filler(pieces: list[NDArray[np.int32]], tokenizer: PreTrainedTokenizerBase, bos: int) -> int:
    """Return the padding token if no row holds it, else `bos`.

    Conversations of a tokenizer without a BOS have no token that begins them. What is recorded as
    one fills rows up, and should not make a token of the conversations look like a row's beginning.
    """
    pad = tokenizer.pad_token_id
    return pad if isinstance(pad, int) and not any(pad in piece for piece in pieces) else bos


class _RowBuilder:
    """Appends documents to a growing stream of rows."""

    def __init__(self, context: int, bos: int, packing: Packing, mask_first_positions: int) -> None:
        self.context, self.packing, self.mask_first = context, packing, mask_first_positions
        self.bos = np.array([bos], dtype=np.int32)
        self.pieces: list[NDArray[np.int32]] = []
        self.roles: list[NDArray[np.uint8]] = []
        self.row_starts: list[int] = []
        self.names: list[str] = []
        self.sources: list[str] = []
        self.heldout: list[bool] = []
        self.columns: dict[str, list[ColumnValue]] = {}
        self.starts: list[int] = []
        self.n_tokens = 0
        self.n_cut = 0
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
        self._begin(document)
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

    def add_conversation(self, document: Document, ids: NDArray[np.int32], roles: NDArray[np.uint8]) -> None:
        if len(ids) < 2:  # nothing but a BOS
            return
        self.row_starts.append(self.n_tokens)
        self._begin(document)
        self.n_cut += len(ids) > self.context
        is_text = roles[: self.context] < SPECIAL
        self._eligible += int(is_text[self.mask_first :].sum())
        self.roles.append(roles[: self.context])
        self._put(ids[: self.context])

    def notes(self) -> tuple[str, ...]:
        """Say what was cut."""
        if not self.n_cut:
            return ()
        return (
            f"{self.n_cut:,} of {len(self.names):,} conversations are cut at the context of {self.context:,} tokens",
        )

    def finish(
        self, rule: KeepRule, special: NDArray[np.int64], bos: int, notes: tuple[str, ...]
    ) -> TokenSequences:
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
            columns=uniform_columns(self.columns),
        )
        return TokenSequences(
            tokens=tokens,
            row_starts=row_starts,
            keep=keep,
            documents=documents,
            bos_token_id=bos,
            roles=np.concatenate(self.roles) if self.roles else None,
            notes=notes,
        )

    def _begin(self, document: Document) -> None:
        self.names.append(document.id)
        self.sources.append(document.source)
        self.heldout.append(document.split == "heldout")
        self.starts.append(self.n_tokens)
        for name, value in document.columns.items():
            self.columns.setdefault(name, []).append(value)

    def _filled(self) -> int:
        return self.n_tokens - self.row_starts[-1]

    def _put(self, piece: NDArray[np.int32]) -> None:
        self.pieces.append(piece)
        self.n_tokens += len(piece)


def _tokenized(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    renderer: ChatRenderer | None,
    characters_per_call: int,
) -> Iterator[tuple[Document, NDArray[np.int32], NDArray[np.uint8] | None]]:
    """Yield documents with their tokens, and roles where they are conversations."""
    for group in _groups(documents, characters_per_call):
        if renderer is None:
            _require_text(group)
            for document, ids in zip(group, plain_ids(tokenizer, [d.text for d in group]), strict=True):
                yield document, ids, None
        else:
            for document, rendered in zip(group, renderer.tokenize(group), strict=True):
                if rendered is not None:
                    yield document, rendered.ids, rendered.roles


def _require_text(group: list[Document]) -> None:
    if chats := [document.id for document in group if document.messages]:
        raise UsageError(f"packing: document {chats[0]!r} is a conversation; choose the packing conversation")


def _groups(documents: Iterable[Document], characters_per_call: int) -> Iterator[list[Document]]:
    group: list[Document] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += document.n_characters
        if characters >= characters_per_call:
            yield group
            group, characters = [], 0
    if group:
        yield group
