"""Which features are asked for. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from saelab.errors import UsageError
from saelab.features.schema import DEAD, DENSE, ONE_TOKEN, POSITION

MAX_TEXT = 1_000
"""Characters of a text that is searched for."""
_ALL_FLAGS = DEAD | DENSE | POSITION | ONE_TOKEN


@dataclass(frozen=True, kw_only=True)
class FeatureFilter:
    """Conditions that all hold; where nothing is given, every feature."""

    min_density: float | None = None
    """Smallest share of the kept tokens on which a feature is active."""
    max_density: float | None = None
    """Largest such share."""
    min_max_act: float | None = None
    """Smallest value of the largest activation."""
    max_max_act: float | None = None
    """Largest value of it; dead features have none and are left out."""
    alive: bool | None = None
    """True for features that were active, False for those that never were."""
    dense: bool | None = None
    """True for features that are active on more than 10 % of the tokens, False for the others."""
    flags: int = 0
    """Bits of ``saelab.features.schema`` that are all set."""
    without_flags: int = 0
    """Bits of which none is set."""
    text: str = ""
    """Text within the label or the name, in upper or lower case."""
    has_label: bool | None = None
    """True for features that have a label, False for the others."""
    promotes: tuple[int, ...] = ()
    """Ids of tokens; features that are among those that promote at least one of them most."""
    active_on: tuple[int, ...] = ()
    """Ids of tokens; features that have at least one of them among the tokens on which they are active most."""
    min_max_decoder_cosine: float | None = None
    """Smallest cosine with the nearest decoder row of another feature."""
    features: tuple[int, ...] | None = None
    """Only these features; None for all."""

    def check(self) -> None:
        """Refuse what cannot be asked.

        Raises:
            UsageError: A number is not finite, a flag unknown, an id negative, or the text not Unicode or too long.
        """
        for name in ("min_density", "max_density", "min_max_act", "max_max_act", "min_max_decoder_cosine"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UsageError(f"index: {name} is {value}, not a finite number")
        for name in ("flags", "without_flags"):
            if getattr(self, name) & ~_ALL_FLAGS:
                raise UsageError(f"index: {name} is {getattr(self, name)}; flags are sums of 1, 2, 4 and 8")
        for name in ("promotes", "active_on", "features"):
            wrong = [value for value in getattr(self, name) or () if not 0 <= value < 2**32]
            if wrong:
                raise UsageError(f"index: {name} holds {wrong[0]}, which is no id")
        require_text(self.text)

    def to_sql(self) -> tuple[str, list[Any]]:
        """Return a condition on the view ``features`` and its parameters; values never become part of the text."""
        found = [
            *self._ranges(),
            *self._kinds(),
            *self._words(),
            *self._lists(),
        ]
        condition = " AND ".join(f"({clause})" for clause, _ in found) or "true"
        return condition, [value for _, values in found for value in values]

    @property
    def needs_active_on(self) -> bool:
        """Whether the condition reads the table ``active_on``."""
        return bool(self.active_on)

    def _ranges(self) -> list[tuple[str, list[Any]]]:
        bounds = (
            ("density >= ?", self.min_density),
            ("density <= ?", self.max_density),
            ("max_act >= ?", self.min_max_act),
            ("max_act <= ?", self.max_max_act),
            ("max_decoder_cosine >= ?", self.min_max_decoder_cosine),
        )
        return [(clause, [value]) for clause, value in bounds if value is not None]

    def _kinds(self) -> list[tuple[str, list[Any]]]:
        wanted, unwanted = self.flags, self.without_flags
        for asked, bit in ((self.dense, DENSE), (None if self.alive is None else not self.alive, DEAD)):
            wanted |= bit if asked is True else 0
            unwanted |= bit if asked is False else 0
        found: list[tuple[str, list[Any]]] = []
        if wanted:
            found.append(("(flags & ?) = ?", [wanted, wanted]))
        if unwanted:
            found.append(("(flags & ?) = 0", [unwanted]))
        return found

    def _words(self) -> list[tuple[str, list[Any]]]:
        found: list[tuple[str, list[Any]]] = []
        if self.text:
            found.append(
                (
                    "contains(lower(name), lower(?)) OR contains(lower(coalesce(label, '')), lower(?))",
                    [self.text, self.text],
                )
            )
        if self.has_label is not None:
            found.append((f"label IS {'NOT NULL' if self.has_label else 'NULL'}", []))
        return found

    def _lists(self) -> list[tuple[str, list[Any]]]:
        found: list[tuple[str, list[Any]]] = []
        if self.promotes:
            clause = (
                "feature IN (SELECT feature FROM logit_inverse WHERE token IN (SELECT unnest(?::UINTEGER[])))"
            )
            found.append((clause, [list(self.promotes)]))
        if self.active_on:
            clause = (
                "feature IN (SELECT feature FROM active_on WHERE token IN (SELECT unnest(?::UINTEGER[])))"
            )
            found.append((clause, [list(self.active_on)]))
        if self.features is not None:
            found.append(("feature IN (SELECT unnest(?::UINTEGER[]))", [list(self.features)]))
        return found


def require_text(text: str) -> None:
    """Refuse a text that cannot be searched for.

    Raises:
        UsageError: It is too long, or holds half of a surrogate pair.
    """
    if len(text) > MAX_TEXT:
        raise UsageError(
            f"index: the text has {len(text):,} characters; at most {MAX_TEXT:,} are searched for"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError("index: the text is not valid Unicode") from error
