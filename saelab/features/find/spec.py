"""How features are found that separate two sets of texts. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import regex

from saelab.errors import UsageError

Pool = Literal["max", "mean"]
Unit = Literal["document", "line", "token"]
REGEX, COLUMN = "re:", "column:"


@dataclass(frozen=True, kw_only=True)
class FindConfig:
    """What is compared, and how much is reported."""

    unit: Unit | None = None
    """What is told apart: whole documents, lines, or tokens; None is lines for a regex and documents otherwise.

    Of what a regex matches only the first token counts as positive."""
    pool: Pool = "max"
    """A feature's value on a unit: the largest, or the mean, over its kept tokens."""
    limit: int = 20
    """Candidates: the features that separate the selection half best."""
    draws: int = 200
    """Random placements of the positives that say what the best candidate would reach by chance."""
    seed: int = 0
    """Decides the halves and the placements."""
    pairs: int = 2**23
    """(Unit, feature) pairs that are in memory at once, about; features are looked at block by block."""

    def check(self) -> None:
        """Refuse what is out of range with a UsageError."""
        bounds = {"limit": (1, 10_000), "draws": (19, 100_000), "seed": (0, 2**63 - 1), "pairs": (1, 2**40)}
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"find: {name} must be from {low} to {high:,}, not {getattr(self, name):,}")
        if self.pool not in ("max", "mean"):
            raise UsageError(f"find: pool is {self.pool!r}; choose max or mean")
        if self.unit not in (None, "document", "line", "token"):
            raise UsageError(f"find: unit is {self.unit!r}; choose document, line or token")


@dataclass(frozen=True)
class TextSet:
    """One of the two sets, as it was given."""

    kind: Literal["regex", "column", "file"]
    """Units of the indexed corpus that match, documents with a value in a column, or texts of a file."""
    what: str
    """The regex, the name of the column, or the path."""
    value: str = ""
    """The column's value."""

    @property
    def shown(self) -> str:
        """The set as it is written on the command line."""
        return {"regex": f"re:{self.what}", "column": f"column:{self.what}={self.value}", "file": self.what}[
            self.kind
        ]

    @property
    def pattern(self) -> regex.Pattern[str]:
        """The regex; ``^`` and ``$`` are the ends of lines."""
        return regex.compile(self.what, regex.MULTILINE)


def read_set(given: str) -> TextSet:
    """Read ``re:REGEX``, ``column:NAME=VALUE`` or the path of a file.

    Raises:
        UsageError: It is none of them.
    """
    if given.startswith(REGEX):
        found = TextSet("regex", given.removeprefix(REGEX))
        try:
            empty = found.pattern.match("", timeout=1.0) is not None
        except regex.error as error:
            raise UsageError(f"find: {given!r} is no regular expression: {error}") from error
        if empty:
            raise UsageError(f"find: {given!r} matches the empty text, so it matches everywhere")
        return found
    if given.startswith(COLUMN):
        name, equals, value = given.removeprefix(COLUMN).partition("=")
        if not name or not equals:
            raise UsageError(f"find: {given!r} is not of the form column:NAME=VALUE")
        return TextSet("column", name, value)
    if not given.strip():
        raise UsageError("find: a set is empty; give a file, re:REGEX or column:NAME=VALUE")
    return TextSet("file", given)
