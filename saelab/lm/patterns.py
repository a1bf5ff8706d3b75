"""Patterns over dotted names: `*` within a part, `**` across parts, `{a,b}` and `{4..8}` as lists of names."""

from __future__ import annotations

import re
from collections.abc import Callable

from saelab.errors import UsageError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,6})\.\.(\d{1,6})")
_MOST_NAMES = 10_000


def is_pattern(name: str) -> bool:
    """Tell whether a name without braces is a pattern."""
    return "*" in name


def expand_braces(pattern: str) -> list[str]:
    """Write out the names that braces stand for: ``a.{0,3}`` and ``a.{0..3}``, both ends included.

    Raises:
        UsageError: Braces are not closed or hold nothing, a range runs backwards, or there are more
            than 10,000 names.
    """
    names = [pattern]
    while any(_BRACES.search(name) for name in names):
        names = [longer for name in names for longer in _expand_once(name, pattern)]
        if len(names) > _MOST_NAMES:
            raise UsageError(f"the name {pattern!r} stands for more than {_MOST_NAMES:,} names")
    if any("{" in name or "}" in name for name in names):
        raise UsageError(f"the braces of the name {pattern!r} do not close")
    return names


def _expand_once(name: str, pattern: str) -> list[str]:
    found = _BRACES.search(name)
    if found is None:
        return [name]
    before, after = name[: found.start()], name[found.end() :]
    return [before + choice + after for choice in _choices(found.group(1), pattern)]


def _choices(inside: str, pattern: str) -> list[str]:
    choices: list[str] = []
    for part in inside.split(","):
        ends = _RANGE.fullmatch(part.strip())
        if ends is None:
            choices.append(part.strip())
            continue
        first, last = int(ends.group(1)), int(ends.group(2))
        if first > last or last - first >= _MOST_NAMES:
            raise UsageError(f"the range {part} in the name {pattern!r} does not run from low to high")
        choices += [str(number) for number in range(first, last + 1)]
    if "" in choices:
        raise UsageError(f"braces of the name {pattern!r} hold an empty choice")
    return choices


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """Return a function that tells whether a name matches a pattern without braces."""
    parts = re.split(r"(\*+)", pattern)
    source = "".join(
        re.escape(part) if not part.startswith("*") else r"[^.]*" if part == "*" else r".*" for part in parts
    )
    compiled = re.compile(source)
    return lambda name: compiled.fullmatch(name) is not None
