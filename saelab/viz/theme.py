"""One look for all figures: white, readable in print and without colour, nothing that carries no data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

MOST_POINTS = 2000
"""Points of a trace: more are not seen, and make a page slow."""
WIDTH, HEIGHT = 620, 400
LEGEND_LINE, LETTER = 20, 7.2
"""Height of a line of a legend and width of a letter in it, pixels, about."""
# Okabe and Ito (2008), without the yellow, which white paper swallows: distinct for the colour-blind.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "x",
    "cross",
    "triangle-down",
    "star",
)
GREY = "#777777"


@dataclass(frozen=True)
class Style:
    """How one curve is told from the others: by three signs, so that it is not colour alone."""

    colour: str
    dash: str
    marker: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis."""

    title: str
    """What it shows, with the unit."""
    log: bool = False
    """Whether it is logarithmic; one with values that are not positive is linear instead."""
    percent: bool = False
    """Whether shares are shown in per cent."""
    octaves: bool = False
    """Whether a logarithmic axis has its ticks at powers of two, where its range holds two of them."""
    from_zero: bool = False
    """Whether a linear axis begins at zero."""


def style_of(index: int) -> Style:
    """Return the style of a figure's curve by its number; 168 are different."""
    return Style(COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)])


def line_of(style: Style) -> dict[str, object]:
    """Return the line of a curve for Plotly."""
    return {"color": style.colour, "dash": style.dash, "width": 2}


def marker_of(style: Style) -> dict[str, object]:
    """Return the markers of a curve for Plotly."""
    return {"color": style.colour, "symbol": style.marker, "size": 8}


def new_figure(title: str, x: Axis, y: Axis) -> go.Figure:
    """Return an empty figure with the common look."""
    figure = go.Figure()
    figure.update_layout(
        title={"text": title, "x": 0, "xref": "paper", "xanchor": "left", "font": {"size": 15}},
        template="none",
        width=WIDTH,
        height=HEIGHT,
        paper_bgcolor="white",
        plot_bgcolor="white",
        font={"family": "Helvetica, Arial, sans-serif", "size": 13, "color": "black"},
        margin={"l": 75, "r": 20, "t": 40, "b": 55},
        hovermode="closest",
        showlegend=True,
    )
    for update, axis in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
        update(
            title={"text": axis.title, "standoff": 8, "font": {"size": 13}},
            type="log" if axis.log else "linear",
            tickformat="~%" if axis.percent else None,
            rangemode="tozero" if axis.from_zero else "normal",
            showline=True,
            linecolor="black",
            linewidth=1,
            ticks="outside",
            ticklen=4,
            showgrid=True,
            gridcolor="#E6E6E6",
            zeroline=False,
            exponentformat="power",
        )
    return figure


def finish(figure: go.Figure, x: Axis, y: Axis) -> go.Figure:
    """Set ticks of logarithmic axes, and put the legend below the plot with room of its own."""
    for name, axis, update in (("x", x, figure.update_xaxes), ("y", y, figure.update_yaxes)):
        if axis.log:
            values = _values(figure, name)
            if values and min(values) > 0:
                _set_log_ticks(update, min(values), max(values), octaves=axis.octaves)
            else:
                update(type="linear")
    traces = _traces(figure)
    names = [str(trace.name) for trace in traces if trace.showlegend is not False and trace.name]
    lines = _legend_lines(names)
    room = 45 + LEGEND_LINE * lines
    figure.update_layout(
        height=HEIGHT + LEGEND_LINE * lines,
        margin={"b": 20 + room},
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "xref": "paper",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "font": {"size": 12},
            "itemwidth": 40,
        },
    )
    return figure


def thinned(*columns: Sequence[float]) -> tuple[list[float], ...]:
    """Return columns of equal length with at most 2,000 rows, evenly chosen, the first and the last among them."""
    n = len(columns[0])
    if n <= MOST_POINTS:
        return tuple(list(column) for column in columns)
    kept = [round(index * (n - 1) / (MOST_POINTS - 1)) for index in range(MOST_POINTS)]
    return tuple([column[index] for index in kept] for column in columns)


def log_ticks(low: float, high: float) -> list[float]:
    """Return the ticks of a logarithmic axis from ``low`` to ``high``: 1, 2, 5 in each decade, or whole decades."""
    decades = math.log10(high / low)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if decades > 4:
        step = max(1, round(decades / 6))
        found = [10.0**power for power in range(first, last + 1, step)]
    else:
        digits: Iterable[int] = (1, 2, 5) if decades > 1 else range(1, 10) if decades > 0.3 else ()
        found = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
    inside = [tick for tick in found if low * 0.999 <= tick <= high * 1.001]
    return inside if len(inside) >= 2 else []


def octave_ticks(low: float, high: float) -> list[float]:
    """Return the powers of two from ``low`` to ``high``, at most ten, evenly spaced; none where there is but one."""
    first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
    step = max(1, -(-(last - first + 1) // 10))
    found = [2.0**power for power in range(first, last + 1, step)]
    return found if len(found) >= 2 else []


def _set_log_ticks(update: Callable[..., object], low: float, high: float, *, octaves: bool) -> None:
    pad = max((high / low) ** 0.06, 1.02)
    low, high = low / pad, high * pad
    update(range=[math.log10(low), math.log10(high)])
    if ticks := (octave_ticks(low, high) if octaves else []) or log_ticks(low, high):
        update(tickvals=ticks, ticktext=[_tick_text(tick) for tick in ticks])
    else:
        update(nticks=5)


def _tick_text(tick: float) -> str:
    if 1e-3 <= tick < 1e6:
        return f"{tick:,.10g}"
    power = math.floor(math.log10(tick) + 1e-9)
    digit = tick / 10.0**power
    base = f"10<sup>{power}</sup>".replace("-", "\N{MINUS SIGN}")
    return base if abs(digit - 1) < 1e-6 else f"{digit:g}·{base}"


def _values(figure: go.Figure, name: str) -> list[float]:
    """Return every number that an axis must show, ends of error bars included."""
    found: list[float] = []
    for trace in _traces(figure):
        values = [float(value) for value in getattr(trace, name) or () if value is not None]
        found += values
        bars = getattr(trace, f"error_{name}")
        if bars is not None and bars.array is not None:
            found += [v + bar for v, bar in zip(values, bars.array, strict=True)]
            found += [v - bar for v, bar in zip(values, bars.arrayminus, strict=True)]
    return found


def _legend_lines(names: Sequence[str]) -> int:
    """Return how many lines a legend below the plot takes; Plotly gives all entries the width of the longest."""
    if not names:
        return 0
    entry = 55 + LETTER * max(map(len, names))
    per_line = max(1, int((WIDTH - 95) // entry))
    return -(-len(names) // per_line)


def _traces(figure: go.Figure) -> tuple[Any, ...]:
    return tuple(figure.data)  # a property that plotly declares too narrowly
