"""Examples of a feature with the tokens around them, rebuilt from the corpus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from saelab.errors import DamagedFileError, UsageError
from saelab.features.queries.corpus import IndexedCorpus
from saelab.features.queries.database import Database
from saelab.features.records import Example
from saelab.features.schema import EXAMPLES, KINDS, NEAR, NEAR_MISS

_NAMES: Final = {number: name for name, number in KINDS.items()}
_COLUMNS = "feature, kind, bin, rank, token_index, document, activation, window_hash, offsets, activations"
# Intervals from the highest to the lowest, as people look at them.
_ORDER = "ORDER BY kind, bin DESC, rank"


def require_kind(group: str) -> int:
    """Return the number of a kind of examples.

    Raises:
        UsageError: There is no such kind.
    """
    if group not in KINDS:
        raise UsageError(f"index: there are no {group!r} examples; choose one of {', '.join(KINDS)}")
    return KINDS[group]


def require_context(context: int | None) -> None:
    """Refuse a window that cannot be shown.

    Raises:
        UsageError: It is negative.
    """
    if context is not None and context < 0:
        raise UsageError(
            f"index: context is {context}; give the tokens on either side, or None for the whole row"
        )


class ExampleReader:
    """Reads the examples of an index.

    Args:
        database: The tables of the index.
        corpus: Its tokens.
        n_documents: How many documents they are of.
        n_vocabulary: Size of the vocabulary.
    """

    def __init__(
        self, database: Database, corpus: IndexedCorpus, n_documents: int, n_vocabulary: int
    ) -> None:
        self._database, self._corpus = database, corpus
        self._n_documents, self._n_vocabulary = n_documents, n_vocabulary

    def of_kind(self, feature: int, kind: int, context: int | None, limit: int | None) -> tuple[Example, ...]:
        """Return the examples of one kind, from its own table for near misses.

        Raises:
            DamagedFileError: One lies outside the corpus.
        """
        table = "near_miss" if kind == NEAR else "examples"
        rows = self._database.select(
            f"SELECT {_COLUMNS} FROM {table} WHERE feature = ? AND kind = ? {_ORDER} LIMIT ?",
            [feature, kind, 2**31 if limit is None else max(0, limit)],
        )
        return tuple(self._rebuilt(row, context) for row in rows)

    def of_all_kinds(self, feature: int, context: int | None) -> dict[str, tuple[Example, ...]]:
        """Return all examples but near misses, by the name of their kind.

        Raises:
            DamagedFileError: One lies outside the corpus.
        """
        rows = self._database.select(f"SELECT {_COLUMNS} FROM examples WHERE feature = ? {_ORDER}", [feature])
        found: dict[str, list[Example]] = {name: [] for name, kind in KINDS.items() if kind != NEAR}
        for row in rows:
            example = self._rebuilt(row, context)
            if example.kind not in found:
                raise DamagedFileError(
                    f"{self._database.folder / EXAMPLES} holds examples of the kind {example.kind}"
                )
            found[example.kind].append(example)
        return {name: tuple(examples) for name, examples in found.items()}

    def _rebuilt(self, raw: Mapping[str, Any], context: int | None) -> Example:
        peak = raw["token_index"]
        try:
            first, end = self._corpus.window(peak, context)
            tokens = self._corpus.tokens[first:end].tolist()
            if min(tokens) < 0 or max(tokens) >= self._n_vocabulary:
                raise ValueError(f"a token beside {peak:,} is not of the vocabulary")
            if not 0 <= raw["document"] < self._n_documents:
                raise ValueError(f"there is no document {raw['document']:,}")
            activations = [0.0] * len(tokens)
            for offset, activation in zip(raw["offsets"], raw["activations"], strict=True):
                if first <= peak + offset < end:
                    activations[peak + offset - first] = activation
            kind = _NAMES[raw["kind"]]
        except (UsageError, TypeError, ValueError, KeyError) as error:
            name = NEAR_MISS if raw["kind"] == NEAR else EXAMPLES
            raise DamagedFileError(
                f"{self._database.folder / name}: an example of feature {raw['feature']} is not sound: {error}"
            ) from error
        return Example(
            feature=raw["feature"],
            kind=kind,
            bin=raw["bin"],
            rank=raw["rank"],
            activation=raw["activation"],
            token_index=peak,
            document=raw["document"],
            first=first,
            tokens=tuple(tokens),
            activations=tuple(activations),
            window_hash=raw["window_hash"],
        )
