"""The tokens of a tokenizer as bytes and as text that can be shown.

A token need not be whole text: byte-level tokenizers cut characters apart, so that the text of one token alone is a
replacement character. What is shown is therefore made of the bytes of neighbouring tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from saelab.errors import UsageError
from saelab.text.token_bytes import find_rule
from saelab.text.tokens import special_token_ids

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

JOINED = "\N{MIDLINE HORIZONTAL ELLIPSIS}"
"""Shown for bytes of a character that began in a token before."""


class Vocabulary:
    """Every token of a tokenizer; make one with `of_tokenizer`, or read it back with `from_table`.

    Args:
        token_bytes: Bytes of each token; None where the tokenizer does not say.
        texts: What each token decodes to alone, with replacement characters where it is no whole text.
        special: Whether each token is a mark and no text.
    """

    def __init__(
        self, token_bytes: Sequence[bytes | None], texts: Sequence[str], special: Sequence[bool]
    ) -> None:
        if not len(token_bytes) == len(texts) == len(special):
            raise UsageError("vocabulary: bytes, texts and marks must be of the same tokens")
        self._bytes, self._texts, self._special = list(token_bytes), list(texts), list(special)
        self._partial = [raw is not None and not _is_text(raw) for raw in self._bytes]

    @classmethod
    def of_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, size: int | None = None) -> Vocabulary:
        """Return the vocabulary of a tokenizer.

        Byte-level BPE, SentencePiece with or without byte fallback, and WordPiece say what bytes a token is. WordPiece
        keeps no spaces: a token that begins a word is shown with one before it, a punctuation mark without.

        Args:
            tokenizer: A tokenizer of transformers.
            size: Ids, where the model has more of them than the tokenizer; those that no token has are shown as
                ``[id]``.
        """
        n = max(len(tokenizer), size or 0, 1 + max(tokenizer.get_vocab().values(), default=-1))
        rule = find_rule(tokenizer)
        marks = set(special_token_ids(tokenizer).tolist())
        added = {token: str(facts.content) for token, facts in tokenizer.added_tokens_decoder.items()}
        names: dict[int, str] = {token: name for name, token in tokenizer.get_vocab().items()}
        found: list[bytes | None] = []
        texts: list[str] = []
        for token in range(n):
            name = names.get(token)
            raw: bytes | None = None
            if name is not None and token in marks:
                raw = added.get(token, name).encode()
            elif name is not None and rule is not None:
                raw = rule(added.get(token, name), token in added)
            if raw is not None:
                text = raw.decode(errors="replace")
            else:
                text = _id_text(token) if name is None else str(tokenizer.decode([token]))
            found.append(raw)
            texts.append(text)
        return cls(found, texts, [token in marks for token in range(n)])

    @classmethod
    def of_ids(cls, ids: NDArray[np.integer]) -> Vocabulary:
        """Return a vocabulary for tokens whose tokenizer is not known: each is shown as its id."""
        n = int(ids.max()) + 1 if len(ids) else 0
        return cls([None] * n, [_id_text(token) for token in range(n)], [False] * n)

    @classmethod
    def from_table(cls, table: pa.Table) -> Vocabulary:
        """Return the vocabulary of a table made by `saelab.features.vocabulary_table`.

        Raises:
            UsageError: Its rows are not those of the tokens 0, 1, 2, ...
        """
        if table["token_id"].to_pylist() != list(range(len(table))):
            raise UsageError("vocabulary: the rows of the table are not the tokens in order")
        return cls(
            table["bytes"].to_pylist(),
            [text or "" for text in table["text"].to_pylist()],
            [bool(mark) for mark in table["is_special"].to_pylist()],
        )

    def __len__(self) -> int:
        return len(self._texts)

    def bytes_of(self, token: int) -> bytes | None:
        """Return the bytes of a token; None where the tokenizer does not say, or there is no such token."""
        return self._bytes[token] if self._has(token) else None

    def text(self, token: int) -> str:
        """Return what a token decodes to alone; ``[id]`` where there is no such token."""
        return self._texts[token] if self._has(token) else _id_text(token)

    def is_special(self, token: int) -> bool:
        """Whether a token is a mark and no text."""
        return self._has(token) and self._special[token]

    def is_partial(self, token: int) -> bool:
        """Whether the bytes of a token are no whole UTF-8."""
        return self._has(token) and self._partial[token]

    def find(self, text: str) -> list[int]:
        """Return the ids of the tokens whose text is this, spaces before and after it aside, ascending."""
        return self._by_text.get(text, []) or self._by_text.get(text.strip(" "), [])

    def display(self, ids: Sequence[int]) -> list[str]:
        """Return what is shown for each token of a run.

        A character whose bytes lie in several tokens is shown whole on the first of them, and as a joined mark on the
        others. Bytes that are no UTF-8 are replacement characters.

        Args:
            ids: Tokens that follow one another.
        """
        tokens = [int(token) for token in ids]
        shown = [self.text(token) for token in tokens]
        start = 0
        while start < len(tokens):
            if not self.is_partial(tokens[start]):
                start += 1
                continue
            stop = start + 1
            while stop < len(tokens) and self._can_continue(tokens[stop]):
                stop += 1
            pieces = [self._bytes[token] or b"" for token in tokens[start:stop]]
            shown[start:stop] = _share_out(pieces)
            start = stop
        return shown

    @cached_property
    def _by_text(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for token, text in enumerate(self._texts):
            for form in {text, text.strip(" ")}:
                found.setdefault(form, []).append(token)
        return found

    def _has(self, token: int) -> bool:
        return 0 <= token < len(self._texts)

    def _can_continue(self, token: int) -> bool:
        # The rest of a character is no whole UTF-8 by itself, so a token that is holds none of it.
        return (self.is_partial(token) or self.bytes_of(token) == b"") and not self.is_special(token)


def _share_out(pieces: Sequence[bytes]) -> list[str]:
    """Return the text of each piece, every character at the piece where its first byte lies."""
    shown = ["" for _ in pieces]
    owner = [number for number, piece in enumerate(pieces) for _ in piece]
    raw = b"".join(pieces)
    place = 0
    while place < len(raw):
        length = _length_at(raw, place)
        character = raw[place : place + length].decode(errors="replace")
        shown[owner[place]] += character
        for number in sorted(set(owner[place + 1 : place + length]) - {owner[place]}):
            shown[number] += JOINED
        place += length
    return shown


def _length_at(raw: bytes, place: int) -> int:
    """Return how many bytes the character at a place has; 1 where they are no UTF-8."""
    first = raw[place]
    length = 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    return length if _is_text(raw[place : place + length]) else 1


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _id_text(token: int) -> str:
    return f"[{token}]"
