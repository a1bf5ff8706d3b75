"""Units of an indexed corpus: documents, lines or tokens, and which of them are in a set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saelab.errors import UsageError
from saelab.features.find.spec import FindConfig, TextSet, Unit
from saelab.features.find.units import Units, label_units
from saelab.features.index import FeatureIndex


def units_of_index(
    index: FeatureIndex, positive: TextSet, negative: TextSet | None, config: FindConfig
) -> Units:
    """Return the labelled units of an index's corpus; without ``negative`` all others are negative.

    A line belongs to a set if the regex is found in it alone, a token if it shares a byte with a match in its
    document (white space at the ends of a match aside), a document if the regex is found in it. The tokens of a line
    are those whose first byte lies in it.

    Raises:
        UsageError: A set is empty, or the corpus has no such column.
    """
    sets = [one for one in (positive, negative) if one is not None]
    unit: Unit = config.unit or ("line" if any(one.kind == "regex" for one in sets) else "document")
    columns = [_column(index, one) if one.kind == "column" else None for one in sets]
    of_token = np.full(len(index.tokens), -1, dtype=np.int64)
    documents: list[NDArray[np.int64]] = []
    members: list[list[NDArray[np.bool_]]] = [[] for _ in sets]
    n_units, starts = 0, index.documents["start"].to_numpy()
    lengths = index.documents["length"].to_numpy()
    for number, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        text = DocumentText(index, start, start + length)
        local, count = text.units(unit)
        of_token[start : start + length] = np.where(local >= 0, local + n_units, -1)
        documents.append(np.full(count, number, dtype=np.int64))
        for place, one in enumerate(sets):
            column = columns[place]
            inside = (
                text.matching(one, unit, local, count) if column is None else np.full(count, column[number])
            )
            members[place].append(inside)
        n_units += count
    first = np.concatenate(members[0]) if members[0] else np.zeros(0, dtype=np.bool_)
    second = np.concatenate(members[1]) if negative is not None else ~first
    if not first.any():
        raise UsageError(
            f"find: nothing in the corpus of {index.path} is in the positive set {positive.what!r}"
        )
    keys = [str(name) for name in index.documents["id"].to_pylist()]
    document = np.concatenate(documents)
    return label_units(of_token, np.asarray(index.keep), document, first, second, keys, config.seed)


def _column(index: FeatureIndex, one: TextSet) -> NDArray[np.bool_]:
    known = index.documents.column_names
    if one.what not in known:
        raise UsageError(
            f"find: the documents of {index.path} have no column {one.what!r}, only {', '.join(known)}; "
            "columns are kept when the text is cached, with --keep-columns"
        )
    values = index.documents[one.what].to_pylist()
    return np.array([_shown(value) == one.value for value in values], dtype=np.bool_)


def _shown(value: object) -> str | None:
    """Return a value as it is written on the command line; a missing value is equal to none."""
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


class DocumentText:
    """The bytes of a document of the corpus, with the place of each token in them.

    Args:
        index: The index.
        start: First token of the document.
        stop: Token behind its last one.
    """

    def __init__(self, index: FeatureIndex, start: int, stop: int) -> None:
        ids = index.tokens[start:stop].tolist()
        vocabulary = index.vocabulary
        pieces = [
            b""
            if vocabulary.is_special(token)
            else vocabulary.bytes_of(token) or vocabulary.text(token).encode()
            for token in ids
        ]
        self.raw = b"".join(pieces)
        self._ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        self._starts = np.concatenate([[0], self._ends[:-1]])
        self._line_ends = np.flatnonzero(np.frombuffer(self.raw, dtype=np.uint8) == ord("\n"))

    def units(self, unit: Unit) -> tuple[NDArray[np.int64], int]:
        """Return the unit of each token within the document, -1 for tokens without text, and how many there are."""
        n_tokens = len(self._ends)
        has_text = self._ends > self._starts
        if unit == "document":
            return np.where(has_text, 0, -1), 1
        if unit == "token":
            return np.where(has_text, np.arange(n_tokens), -1), n_tokens
        return np.where(has_text, np.searchsorted(self._line_ends, self._starts), -1), len(
            self._line_ends
        ) + 1

    def matching(self, one: TextSet, unit: Unit, local: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
        """Return which units of the document are in a set that a regex describes."""
        pattern = one.pattern
        if unit == "line":
            lines = self.raw.split(b"\n")
            return np.array([pattern.search(_text(line)) is not None for line in lines], dtype=np.bool_)
        text = _text(self.raw)
        if unit == "document":
            return np.array([pattern.search(text) is not None])
        covered = np.zeros(count, dtype=np.bool_)
        at = _byte_offsets(text)
        for match in pattern.finditer(text):
            inside = match.group()
            first = match.start() + len(inside) - len(inside.lstrip()) if inside.strip() else match.start()
            last = first + len(inside.strip()) if inside.strip() else match.end()
            low = int(np.searchsorted(self._ends, at[first], side="right"))
            high = int(np.searchsorted(self._starts, at[last], side="left"))
            covered[low:high] = True
        return covered & (local >= 0)


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _byte_offsets(text: str) -> NDArray[np.int64]:
    """Return at which byte each character begins, and at the end the number of bytes."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    widths[(points >= 0xDC80) & (points <= 0xDCFF)] = 1  # a byte that is no UTF-8
    return np.concatenate([[0], np.cumsum(widths)])
