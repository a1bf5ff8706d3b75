"""Units of an indexed corpus: documents, lines or tokens, and which of them are in a set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from saelab.errors import UsageError
from saelab.features.find.spec import FindConfig, TextSet, Unit
from saelab.features.find.units import Units, label_units
from saelab.features.find.watch import Watch
from saelab.features.index import FeatureIndex


def units_of_index(
    index: FeatureIndex,
    positive: TextSet,
    negative: TextSet | None,
    config: FindConfig,
    watch: Watch | None = None,
) -> Units:
    """Return the labelled units of an index's corpus; without ``negative`` all others are negative.

    A line belongs to a set if the regex is found in it alone, a document if it is found in it, a token if a match in
    its document begins in it (white space at the beginning of a match aside). The tokens of a line are those whose
    first byte lies in it.

    Of a match only the first token is positive, so that each match counts once however long it is; a regex such as
    ``(?<=@)\\w+`` moves the beginning to where it is wanted. Its further tokens are no rest: they are left out where
    ``negative`` is not given.

    Raises:
        UsageError: A set is empty, the corpus has no such column, or a regex takes too long on a document.
        Interrupted: A stop was asked for.
    """
    sets = [one for one in (positive, negative) if one is not None]
    unit: Unit = config.unit or ("line" if any(one.kind == "regex" for one in sets) else "document")
    columns = [_column(index, one) if one.kind == "column" else None for one in sets]
    of_token = np.full(len(index.tokens), -1, dtype=np.int64)
    documents: list[NDArray[np.int64]] = []
    members: list[list[NDArray[np.bool_]]] = [[] for _ in sets]
    touched: list[NDArray[np.bool_]] = []
    watch = watch or Watch()
    n_units, starts = 0, index.documents["start"].to_numpy()
    lengths = index.documents["length"].to_numpy()
    for number, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        watch.check()
        text = DocumentText(index, start, start + length)
        local, count = text.units(unit)
        of_token[start : start + length] = np.where(local >= 0, local + n_units, -1)
        documents.append(np.full(count, number, dtype=np.int64))
        for place, one in enumerate(sets):
            column = columns[place]
            if column is None:
                inside, all_of_it = text.matching(one, unit, local, count)
            else:
                inside = all_of_it = np.full(count, column[number])
            members[place].append(inside)
            if place == 0:
                touched.append(all_of_it)
        n_units += count
    first = np.concatenate(members[0])
    second = ~np.concatenate(touched) if negative is None else np.concatenate(members[1])
    for inside, one, name in zip((first, second), sets, ("positive", "negative"), strict=False):
        if not inside.any():
            raise UsageError(
                f"find: nothing in the corpus of {index.path} is in the {name} set {one.shown!r}"
            )
    keys = [str(name) for name in index.documents["id"].to_pylist()]
    document = np.concatenate(documents)
    return label_units(of_token, np.asarray(index.keep), document, first, second, keys, config.seed)


SECONDS = 10.0
"""Time that a regex may take on one document."""


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

    def matching(
        self, one: TextSet, unit: Unit, local: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which units of the document are in a set that a regex describes, and which a match touches.

        Raises:
            UsageError: The regex takes too long.
        """
        pattern = one.pattern
        with _limited(one) as left:
            if unit == "line":
                lines = self.raw.split(b"\n")
                found = np.array(
                    [pattern.search(_text(line), timeout=left()) is not None for line in lines],
                    dtype=np.bool_,
                )
                return found, found
            text = _text(self.raw)
            if unit == "document":
                found = np.array([pattern.search(text, timeout=left()) is not None])
                return found, found
            spans = [_span(match.group(), match.start()) for match in pattern.finditer(text, timeout=left())]
        return self._tokens_of(spans, text, local >= 0)

    def _tokens_of(
        self, spans: list[tuple[int, int]], text: str, has_text: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which tokens spans of characters begin in, and which they touch."""
        begins, touched = np.zeros((2, len(has_text)), dtype=np.bool_)
        at = _byte_offsets(text)
        for first, last in spans:
            low = int(np.searchsorted(self._ends, at[first], side="right"))
            high = int(np.searchsorted(self._starts, at[last], side="left"))
            begins[low : low + 1] = True  # none where an empty match stands at the end
            touched[low : max(low + 1, high)] = True
        return begins & has_text, touched & has_text


def _span(matched: str, start: int) -> tuple[int, int]:
    """Return the first character of a match that is no white space, if there is one, and the one behind its last."""
    space = len(matched) - len(matched.lstrip())
    return start + (space if space < len(matched) else 0), start + len(matched)


@contextmanager
def _limited(one: TextSet) -> Iterator[Callable[[], float]]:
    """Give the seconds that are left to a regex; one that needs more is refused."""
    end = time.monotonic() + SECONDS
    try:
        yield lambda: max(1e-3, end - time.monotonic())
    except TimeoutError as error:
        raise UsageError(
            f"find: {one.shown!r} takes longer than {SECONDS:g} s on one document; write it without repeats of "
            "repeats such as (a+)+"
        ) from error


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _byte_offsets(text: str) -> NDArray[np.int64]:
    """Return at which byte each character begins, and at the end the number of bytes."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    widths[(points >= 0xDC80) & (points <= 0xDCFF)] = 1  # a byte that is no UTF-8
    return np.concatenate([[0], np.cumsum(widths)])
