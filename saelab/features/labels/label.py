"""One label, as it is kept and as it is chosen among several. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from saelab.errors import UsageError

LONGEST_TEXT = 4_000
"""Characters of a label at most: a paragraph."""
LONGEST_FACT = 200
"""Characters of an author, a model or a date at most."""
_FIELDS = frozenset(("feature", "text", "author", "model", "score", "created"))


@dataclass(frozen=True, kw_only=True)
class Label:
    """What somebody or something called a feature."""

    feature: int
    """Index of the feature."""
    text: str
    """One line."""
    author: str | None = None
    """Who or what wrote it, as the file said."""
    model: str | None = None
    """The language model that wrote it, as the file said; None where none did or it is not known."""
    score: float | None = None
    """How well it fits, larger is better; of scores from different methods nobody should compare the size."""
    created: str | None = None
    """When it was written, as the file said."""

    @property
    def key(self) -> tuple[int, str, str | None, str | None, float | None]:
        """What makes two labels the same one: all but the date."""
        return self.feature, self.text, self.author, self.model, self.score

    def to_json(self) -> dict[str, Any]:
        """Return the label as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Label:
        """Read a label strictly, as saelab writes it.

        Raises:
            UsageError: A field is missing, unknown, or not what it should be, as one clause.
        """
        if set(raw) != _FIELDS:
            raise UsageError(f"a label has the fields {', '.join(sorted(_FIELDS))}")
        return make_label(**raw)


def make_label(
    feature: object,
    text: object,
    author: object = None,
    score: object = None,
    created: object = None,
    model: object = None,
) -> Label:
    """Make a label of what a file says.

    Args:
        feature: A whole number of at least 0, also written as text.
        text: White space and NUL become single spaces.
        author: Text, or None.
        score: A finite number, also written as text, or None.
        created: Text, or None.
        model: Text, or None.

    Raises:
        UsageError: One of them is something else, as one clause.
    """
    words = _text("the label", text, LONGEST_TEXT)
    if not words:
        raise UsageError("the label is empty")
    return Label(
        feature=_feature(feature),
        text=words,
        author=_text("the author", author, LONGEST_FACT) or None,
        model=_text("the model", model, LONGEST_FACT) or None,
        score=_score(score),
        created=_text("the date", created, LONGEST_FACT) or None,
    )


def shown_labels(labels: Iterable[Label]) -> dict[int, str]:
    """Return the one label of each feature that is shown: the highest score, of equal ones the newest line.

    A label without a score comes after those that have one.
    """
    best: dict[int, Label] = {}
    for label in labels:
        old = best.get(label.feature)
        if old is None or _rank(label) >= _rank(old):
            best[label.feature] = label
    return {feature: label.text for feature, label in sorted(best.items())}


def _rank(label: Label) -> float:
    return -math.inf if label.score is None else label.score


def _feature(raw: object) -> int:
    if isinstance(raw, str) and raw.strip().isascii() and raw.strip().isdigit() and len(raw) < 12:
        return int(raw)
    if isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw < 2**40:
        return raw
    raise UsageError(f"{_shown(raw)} is no index of a feature")


def _score(raw: object) -> float | None:
    if raw is None or raw == "":
        return None
    try:
        value = float(raw) if isinstance(raw, str | int | float) and not isinstance(raw, bool) else math.nan
    except (ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"the score {_shown(raw)} is no number")
    return value


def _text(what: str, raw: object, longest: int) -> str:
    if raw is None:
        return ""
    if not isinstance(raw, str):
        raise UsageError(f"{what} is {_shown(raw)}, not text")
    words = " ".join(raw.replace("\0", " ").split())
    if len(words) > longest:
        raise UsageError(f"{what} has {len(words):,} characters; at most {longest:,} are kept")
    try:
        words.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is not Unicode text") from error
    return words


def _shown(raw: object) -> str:
    text = ascii(raw)
    return text if len(text) <= 40 else f"{text[:39]}..."
