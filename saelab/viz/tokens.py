"""Rows of tokens, each token shaded by a number: the one renderer of the card, the report and the app.

Every string is escaped and every class is one of a fixed set, chosen from a number: nothing of a corpus can become
markup, a colour, an address or the name of anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from saelab.viz.small_table import small_table
from saelab.viz.text import html_text
from saelab.viz.token_style import STEPS
from saelab.viz.visible import NEWLINE, visible_parts, visible_text

Scale = Literal["row", "feature", "p99"]
SCALES: tuple[Scale, ...] = ("row", "feature", "p99")
STRONGEST = 10
"""Tokens of a row that its disclosure lists."""
_SCALE_WORDS = {
    "row": "the largest value of its row",
    "feature": "the largest activation of the feature",
    "p99": "the 99 % quantile of the activations; stronger ones look the same",
}


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """Tokens that follow one another, with a number each."""

    texts: tuple[str, ...]
    """What is shown for each."""
    values: tuple[float, ...]
    """Its number; NaN where there is none, which is hatched."""
    title: str = ""
    """What the row is, for a screen reader: ``Example 3``."""
    note: str = ""
    """Plain text before the row."""
    peak: int | None = None
    """Number of the token that the row is about, which is framed."""
    raw: tuple[bytes | None, ...] = ()
    """Bytes of each token, for the hover of those that are no whole text; may be left out."""
    special: tuple[bool, ...] = ()
    """Whether each token is a mark and no text; may be left out."""


def token_html(
    rows: Sequence[TokenRow],
    *,
    scale: Scale = "feature",
    reference: float | None = None,
    breaks: bool = False,
    legend: bool = True,
    disclose: bool = True,
) -> str:
    """Return rows of tokens as HTML, to be shown with `saelab.viz.token_style.token_style`.

    Args:
        rows: What to show.
        scale: What the strongest colour stands for.
        reference: That value where it is known from elsewhere (the feature's largest activation, its 99 % quantile);
            else it is taken from the rows. Not for the scale ``row``.
        breaks: Break lines where the text does.
        legend: Explain the colours.
        disclose: List the strongest tokens of each row, where its note is opened.
    """
    common = None if scale == "row" else _reference(rows, scale, reference)
    parts = [_legend(rows, scale, common)] if legend else []
    for row in rows:
        top = _largest(row.values) if common is None else common
        parts.append(_row(row, top, breaks=breaks, disclose=disclose))
    return f'<div class="saelab-tokens">{"".join(parts)}</div>'


def token_class(value: float, top: float) -> str:
    """Return the classes of a value: ``a0`` for zero to ``a15`` for ``top`` and more, ``n`` below zero, or ``nan``."""
    if math.isnan(value):
        return "nan"
    if value == 0 or top <= 0:
        return "a0"
    share = 1.0 if math.isinf(value) else min(1.0, abs(value) / top)
    step = max(1, math.ceil(STEPS * share - 1e-9))
    return f"a{step} n" if value < 0 else f"a{step}"


def number_text(value: float | None) -> str:
    """Return a number with four digits."""
    if value is None or math.isnan(value):
        return "\N{EN DASH}"
    shown = f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return shown.replace("-", "\N{MINUS SIGN}") if value < 0 else shown


def markup(text: str, *, breaks: bool = False, spaces: bool = False) -> str:
    """Return a text with all that is hidden in it shown, escaped.

    Args:
        text: Any text.
        breaks: Break lines where the text does.
        spaces: Show spaces as dots, for a token that stands alone.
    """
    shown = []
    for kind, part in visible_parts(text, spaces=spaces):
        if kind == "text":
            shown.append(html_text(part))
        elif kind == "chip":
            shown.append(f'<span class="chip">{html_text(part)}</span>')
        else:
            shown.append(f'<span class="mark">{html_text(part)}</span>')
            if breaks and part == NEWLINE:
                shown.append("<br>")
    return "".join(shown)


def _row(row: TokenRow, top: float, *, breaks: bool, disclose: bool) -> str:
    tokens = "".join(_token(row, place, top, breaks=breaks) for place in range(len(row.texts)))
    note, table = html_text(visible_text(row.note)) if row.note else "", _strongest(row) if disclose else ""
    if table:
        before = f'<details class="note"><summary>{note or "values"}</summary>{table}</details>'
    else:
        before = f'<div class="note">{note}</div>'
    return (
        f'<div class="row" role="group" aria-label="{html_text(_label(row))}">{before}'
        f'<div class="text" dir="auto">{tokens}</div></div>'
    )


def _token(row: TokenRow, place: int, top: float, *, breaks: bool) -> str:
    classes = f"t {token_class(row.values[place], top)}"
    if place == row.peak:
        classes += " peak"
    if row.special and row.special[place]:
        classes += " special"
    title = f"{visible_text(row.texts[place])}  {number_text(row.values[place])}"
    raw = row.raw[place] if row.raw else None
    if raw is not None and _is_partial(raw):
        title += f"  (bytes {raw.hex(' ')})"
    return (
        f'<span class="{classes}" title="{html_text(title)}">{markup(row.texts[place], breaks=breaks)}</span>'
    )


def _label(row: TokenRow) -> str:
    place = row.peak if row.peak is not None else _strongest_places(row)[0] if row.texts else None
    if place is None:
        return row.title
    text = visible_text(row.texts[place].strip(" ") or row.texts[place])
    said = f"peak {number_text(row.values[place])} on '{text}'"
    return f"{visible_text(row.title)}, {said}" if row.title else said


def _strongest(row: TokenRow) -> str:
    places = [place for place in _strongest_places(row) if row.values[place] != 0][:STRONGEST]
    cells = [
        (str(place + 1), markup(row.texts[place], spaces=True), number_text(row.values[place]))
        for place in places
    ]
    return small_table(("place", "token", "value"), cells, text=(1,)) if cells else ""


def _strongest_places(row: TokenRow) -> list[int]:
    strength = [0.0 if math.isnan(value) else abs(value) for value in row.values]
    return sorted(range(len(strength)), key=lambda place: (-strength[place], place))


def _reference(rows: Sequence[TokenRow], scale: Scale, given: float | None) -> float:
    if given is not None and math.isfinite(given) and given > 0:
        return given
    found = sorted(abs(value) for row in rows for value in row.values if math.isfinite(value) and value != 0)
    if not found:
        return 0.0
    return found[-1] if scale == "feature" else found[math.ceil(0.99 * len(found)) - 1]


def _largest(values: Sequence[float]) -> float:
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0)


def _legend(rows: Sequence[TokenRow], scale: Scale, top: float | None) -> str:
    signed = any(value < 0 for row in rows for value in row.values)
    hatched = any(math.isnan(value) for row in rows for value in row.values)
    steps = [3, 6, 9, 12, 15]
    below = "".join(f'<span class="t a{step} n"></span>' for step in reversed(steps)) if signed else ""
    above = "".join(f'<span class="t a{step}"></span>' for step in steps)
    ends = ("lowest", "largest") if top is None else (number_text(-top), number_text(top))
    low = html_text(ends[0]) + " " if signed else "0 "
    words = f"strongest colour: {_SCALE_WORDS[scale]}"
    more = ' <span class="t nan"></span> not measured' if hatched else ""
    return (
        f'<div class="legend">{low}{below}<span class="t a0"></span>{above} {html_text(ends[1])}; '
        f"{html_text(words)}.{more}</div>"
    )


def _is_partial(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return True
    return False
