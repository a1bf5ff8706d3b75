"""Text of a corpus as a person can see all of it: what would hide, reorder or break is named instead."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Literal

Kind = Literal["text", "space", "chip"]
NEWLINE, TAB, SPACE = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\N{RIGHTWARDS ARROW}", "\N{MIDDLE DOT}"
EMPTY = "empty"
# Letters and marks that leave no trace on the screen.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
# Controls, format characters (bidi, zero-width), surrogates, private and unknown ones, line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_IDEOGRAPHIC_SPACE = "\u3000"


def visible_parts(text: str, *, spaces: bool = False) -> Iterator[tuple[Kind, str]]:
    """Return a text as runs of characters that are shown as they are, marks for line breaks and tabs, and chips.

    A chip is the code point of a character that cannot be seen or that changes its neighbours' order: ``U+202E``.

    Args:
        text: Any text.
        spaces: Show spaces as marks too, for a token that stands alone.
    """
    if not text:
        yield "chip", EMPTY
    run = ""
    for place, character in enumerate(text):
        shown = _named(character, at_start=place == 0)
        if spaces and character == " ":
            shown = ("space", SPACE)
        if shown is None:
            run += character
            continue
        if run:
            yield "text", run
        run = ""
        yield shown
    if run:
        yield "text", run


def visible_text(text: str, *, spaces: bool = False) -> str:
    """Return the same on one line of plain text, for hovers and labels; chips stand in angle brackets."""
    parts = visible_parts(text, spaces=spaces)
    return "".join(f"\u27e8{shown}\u27e9" if kind == "chip" else shown for kind, shown in parts)


def _named(character: str, *, at_start: bool) -> tuple[Kind, str] | None:
    if character == "\n":
        return "space", NEWLINE
    if character == "\t":
        return "space", TAB
    if " " <= character <= "~":
        return None
    category = unicodedata.category(character)
    hidden = category in _HIDDEN or character in _BLANK or _is_selector(character, at_start=at_start)
    odd_space = category == "Zs" and character != _IDEOGRAPHIC_SPACE
    return ("chip", f"U+{ord(character):04X}") if hidden or odd_space else None


def _is_selector(character: str, *, at_start: bool) -> bool:
    """Whether it chooses the form of the character before; the usual ones may stand where there is one."""
    return (at_start and "\ufe00" <= character <= "\ufe0f") or "\U000e0100" <= character <= "\U000e01ef"
