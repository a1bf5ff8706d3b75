"""The stylesheet of token rows: fixed classes, each step with a background, a text colour and a border below.

Orange is above zero, blue below: a pair that the colour-blind tell apart. Lightness falls (in the dark: rises) with
the value, the border below grows with it, so that neither colour nor sight of colour is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STEPS = 15
"""Classes a1 to a15 of a value; a0 is zero."""
Theme = Literal["light", "dark"]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Palette:
    """Colours of one theme."""

    paper: Colour
    ink: Colour
    quiet: Colour
    """Text of less weight."""
    line: Colour
    """Lines and the ground of chips."""
    positive: Colour
    """Background of the largest value."""
    negative: Colour
    positive_border: Colour
    negative_border: Colour


PALETTES: dict[Theme, Palette] = {
    "light": Palette(
        paper=(255, 255, 255),
        ink=(0, 0, 0),
        quiet=(80, 80, 80),
        line=(215, 215, 215),
        positive=(244, 125, 32),
        negative=(76, 155, 232),
        positive_border=(176, 66, 0),
        negative_border=(0, 80, 160),
    ),
    "dark": Palette(
        paper=(16, 18, 22),
        ink=(245, 245, 245),
        quiet=(175, 178, 184),
        line=(62, 66, 74),
        positive=(158, 72, 4),
        negative=(24, 98, 178),
        positive_border=(255, 160, 80),
        negative_border=(120, 190, 255),
    ),
}

_LAYOUT = """
.saelab-tokens { font: 14px/1.75 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.saelab-tokens .row { display: grid; grid-template-columns: 5.5em minmax(0, 1fr); gap: 0 0.7em; padding: 0.25em 0;
  border-bottom: 1px solid var(--sl-line); break-inside: avoid; }
.saelab-tokens .note { text-align: right; font-variant-numeric: tabular-nums; color: var(--sl-quiet); }
.saelab-tokens .note[open] { grid-column: 1 / -1; text-align: left; padding: 0 0 0.3em 1em; }
.saelab-tokens .text { grid-column: 2; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
  overflow: hidden; padding: 0 2px; }
.saelab-tokens .t { color: var(--sl-ink); border-bottom: 0 solid transparent; -webkit-box-decoration-break: clone;
  box-decoration-break: clone; }
.saelab-tokens .peak { outline: 1.5px solid var(--sl-ink); outline-offset: -1px; border-radius: 2px; }
.saelab-tokens .special { font-style: italic; }
.saelab-tokens .mark { opacity: 0.75; }
.saelab-tokens .chip { font-size: 0.72em; border: 1px solid var(--sl-quiet); border-radius: 3px; padding: 0 0.25em;
  margin: 0 1px; direction: ltr; unicode-bidi: isolate; }
.saelab-tokens .nan { background: repeating-linear-gradient(45deg, transparent 0 4px, var(--sl-line) 4px 6px);
  border-bottom: 1px dashed var(--sl-quiet); }
.saelab-tokens .legend, .saelab-tokens table { font: 12px/1.5 Helvetica, Arial, sans-serif; color: var(--sl-quiet); }
.saelab-tokens .legend .t { display: inline-block; width: 1.15em; height: 1.1em; vertical-align: middle; }
.saelab-tokens .legend .a0 { border: 1px solid var(--sl-line); }
.saelab-tokens summary { cursor: pointer; }
.saelab-tokens table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.saelab-tokens th, .saelab-tokens td { text-align: left; padding: 0 0.8em 0 0; font-weight: normal; border: 0;
  white-space: pre-wrap; color: var(--sl-quiet); background: none; }
"""


def mixed(start: Colour, end: Colour, share: float) -> Colour:
    """Return the colour that lies a share of the way from one to another."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue


def step_colour(palette: Palette, step: int, *, negative: bool = False) -> Colour:
    """Return the background of a step from 0 (zero) to 15 (the largest)."""
    share = 0.0 if step == 0 else 0.08 + 0.92 * step / STEPS
    return mixed(palette.paper, palette.negative if negative else palette.positive, share)


def contrast(one: Colour, other: Colour) -> float:
    """Return the contrast ratio of two colours, from 1 to 21, as the Web Content Accessibility Guidelines define it."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def token_style(theme: Theme | None = None) -> str:
    """Return the stylesheet of token rows.

    Args:
        theme: Its colours; None takes those that the reader's system prefers, and light ones on paper.
    """
    return _LAYOUT + themed(".saelab-tokens", theme) + _steps()


def themed(selector: str, theme: Theme | None) -> str:
    """Return the colours of a theme as variables of an element."""
    if theme is not None:
        return f"{selector} {{ {_variables(PALETTES[theme])} }}\n"
    light, dark = _variables(PALETTES["light"]), _variables(PALETTES["dark"])
    return (
        f"{selector} {{ {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ {selector} {{ {dark} }} }}\n"
    )


def _variables(palette: Palette) -> str:
    colours = {
        "paper": palette.paper,
        "ink": palette.ink,
        "quiet": palette.quiet,
        "line": palette.line,
        "pb": palette.positive_border,
        "nb": palette.negative_border,
    }
    for step in range(1, STEPS + 1):
        colours[f"p{step}"] = step_colour(palette, step)
        colours[f"n{step}"] = step_colour(palette, step, negative=True)
    return " ".join(
        f"--sl-{name}: #{red:02x}{green:02x}{blue:02x};" for name, (red, green, blue) in colours.items()
    )


def _steps() -> str:
    rules = []
    for step in range(1, STEPS + 1):
        width = 1 + (step - 1) // 4
        for mark, extra in (("p", ""), ("n", ".n")):
            rules.append(
                f".saelab-tokens .a{step}{extra} {{ background: var(--sl-{mark}{step}); "
                f"border-bottom: {width}px solid var(--sl-{mark}b); }}"
            )
    # Paper must show what the screen shows.
    rules.append(".saelab-tokens .t { -webkit-print-color-adjust: exact; print-color-adjust: exact; }")
    return "\n".join(rules) + "\n"


def _luminance(colour: Colour) -> float:
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (value / 255 for value in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
