"""Histograms as small drawings within a page, without a script: for notebooks, printing and reading offline."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from saelab.features.records import Histogram
from saelab.viz.text import html_text
from saelab.viz.tokens import number_text

WIDTH, HEIGHT, FOOT, HEAD = 360, 110, 18, 14

STYLE = """
.saelab-card .bars { max-width: 100%; height: auto; display: block; }
.saelab-card .bars rect { fill: var(--sl-pb); } .saelab-card .bars rect.low { fill: var(--sl-nb); }
.saelab-card .bars text { fill: var(--sl-quiet); font: 11px Helvetica, Arial, sans-serif; }
.saelab-card .bars line { stroke: var(--sl-quiet); stroke-width: 1; }
.saelab-card .bars line.mark { stroke: var(--sl-ink); stroke-dasharray: 2 2; }
"""


def bars_svg(
    histogram: Histogram, what: str, *, marks: Sequence[tuple[str, float]] = (), noun: str = "values"
) -> str:
    """Return a histogram with bars in proportion to log(1 + count), so that bins with one value can be seen.

    Args:
        histogram: Counts between edges; nothing is drawn where it is empty.
        what: What it shows, for a screen reader.
        marks: Names and values that a line marks on the axis.
        noun: What is counted, in the hover of a bar.
    """
    if not histogram.counts or len(histogram.edges) != len(histogram.counts) + 1:
        return ""
    low, high = histogram.edges[0], histogram.edges[-1]
    if not high > low:
        return ""

    def at(value: float) -> float:
        return WIDTH * min(1.0, max(0.0, (value - low) / (high - low)))

    most = max(histogram.counts)
    bottom = HEAD + HEIGHT
    bars = []
    for left, right, count in zip(histogram.edges[:-1], histogram.edges[1:], histogram.counts, strict=True):
        height = HEIGHT * math.log1p(count) / math.log1p(most) if most else 0.0
        kind = ' class="low"' if right <= 0 else ""
        hover = f"{number_text(left)} to {number_text(right)}: {count:,} {noun}"
        bars.append(
            f'<rect x="{at(left):.1f}" y="{bottom - height:.1f}" width="{max(0.5, at(right) - at(left) - 1):.1f}" '
            f'height="{height:.1f}"{kind}><title>{html_text(hover)}</title></rect>'
        )
    label = f"{what}, from {number_text(low)} to {number_text(high)}; the fullest bin holds {most:,} {noun}"
    return (
        f'<svg class="bars" viewBox="0 0 {WIDTH} {bottom + FOOT}" width="{WIDTH}" height="{bottom + FOOT}" role="img" '
        f'aria-label="{html_text(label)}">{"".join(bars)}<line x1="0" x2="{WIDTH}" y1="{bottom}" y2="{bottom}"/>'
        f"{_marks(marks, at, bottom)}{_ends(low, high, bottom)}</svg>"
    )


def _marks(marks: Sequence[tuple[str, float]], at: Callable[[float], float], bottom: int) -> str:
    drawn, free_from = [], -math.inf
    for name, value in sorted(marks, key=lambda mark: mark[1]):
        x = at(value)
        drawn.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{HEAD}" y2="{bottom}"/>')
        width = 7.0 * len(name)
        if x - width / 2 >= free_from:
            anchor = "start" if x < width / 2 else "end" if x > WIDTH - width / 2 else "middle"
            drawn.append(f'<text x="{x:.1f}" y="{HEAD - 4}" text-anchor="{anchor}">{html_text(name)}</text>')
            free_from = x + width / 2
    return "".join(drawn)


def _ends(low: float, high: float, bottom: int) -> str:
    y = bottom + FOOT - 5
    return (
        f'<text x="0" y="{y}">{number_text(low)}</text>'
        f'<text x="{WIDTH}" y="{y}" text-anchor="end">{number_text(high)}</text>'
    )
