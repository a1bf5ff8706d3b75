"""A report as a figure: steps over their bound, and times along each axis of the scaling."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saelab_kernels.bench.options import BenchError
from saelab_kernels.bench.rounds import clocks

BAR, LINES, GAP = 22, 320, 90
"""Pixels: height of a bar with its name, of a panel of lines, and between panels."""
MARGINS = {"t": 110, "b": 60}
SCALING = "scaling with"
"""Begins the titles of panels with lines, beside the first of which the legend stands."""
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#555555")
"""Told apart also by most who see few colours (Okabe and Ito 2008); ours is the first."""


def require_plotly(path: Path) -> None:
    """Refuse a figure that cannot be drawn here, before anything is measured (BenchError)."""
    needed = {".html": ("plotly",), ".svg": ("plotly", "kaleido")}[path.suffix]
    if absent := [name for name in needed if find_spec(name) is None]:
        raise BenchError(
            f"--figure {path}: needs {' and '.join(absent)}, not installed here (.html needs plotly)"
        )


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the figure; .html holds all that it needs."""
    make_subplots = import_module("plotly.subplots").make_subplots
    panels = _panels(report)
    heights = [_height(traces) for _, traces, _ in panels]
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        subplot_titles=[title for title, _, _ in panels],
        row_heights=heights,
        vertical_spacing=GAP / (sum(heights) + GAP * (len(panels) - 1)),
    )
    shown: set[str] = set()
    for row, (title, traces, axes) in enumerate(panels, start=1):
        for trace in traces:
            name = trace.get("name", "")
            legend = trace["type"] == "scatter" and name not in shown
            shown.add(name)
            figure.add_trace({**trace, "showlegend": legend}, row=row, col=1)
        figure.update_xaxes(axes["x"], row=row, col=1)
        figure.update_yaxes(axes["y"], row=row, col=1)
        if title.startswith(SCALING) and figure.layout.legend.y is None:
            figure.update_layout(legend={"y": next(figure.select_yaxes(row=row)).domain[1]})
    o = report["options"]
    title = f"d_in {o['d_in']}, d_sae {o['d_sae']:,}, k {o['k']}, batch {o['batch']:,}, {report['backend']}"
    height = sum(heights) + GAP * (len(panels) - 1) + sum(MARGINS.values())
    figure.update_layout(title=title, height=height, margin=MARGINS, template="plotly_white")
    if path.suffix == ".html":
        figure.write_html(str(path), include_plotlyjs=True)
    else:
        figure.write_image(str(path))


def _height(traces: list[dict[str, Any]]) -> int:
    """Pixels: enough for a name beside every bar."""
    return BAR * len(traces[0]["y"]) if traces[0]["type"] == "bar" else LINES


Panel = tuple[str, list[dict[str, Any]], dict[str, dict[str, Any]]]
"""Title, traces and axes."""


def _panels(report: dict[str, Any]) -> list[Panel]:
    clock = clocks(report["options"]["device"])[0]
    panels = []
    if "operators" in report:
        found = {name: one["over_product"][clock] for name, one in report["operators"].items()}
        panels.append(_bars("operators", found, f"encoder products ({clock} time)"))
    if "step" in report:
        found = {name: one["over_bound"][clock] for name, one in report["step"]["variants"].items()}
        panels.append(_bars("training step", found, f"time over the bound ({clock} time)"))
    records = report.get("scaling", [])
    for axis in dict.fromkeys(record["axis"] for record in records):
        panels.append(_lines(axis, [record for record in records if record["axis"] == axis], clock))
    return panels


def _bars(title: str, values: dict[str, float], label: str) -> Panel:
    bars = {
        "type": "bar",
        "orientation": "h",
        "name": title,
        "y": list(values),
        "x": list(values.values()),
        "text": [f"{value:.2f}" for value in values.values()],
        "marker": {"color": [COLOURS[0 if name.startswith("saelab") else -1] for name in values]},
    }
    return (
        title,
        [bars],
        {"x": {"title": label}, "y": {"autorange": "reversed", "dtick": 1, "automargin": True}},
    )


def _lines(axis: str, records: list[dict[str, Any]], clock: str) -> Panel:
    x = [record["value"] for record in records]
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "legendgroup": name,
            "line": {"color": COLOURS[at % len(COLOURS)]},
            "x": x,
            "y": [record["variants"][name][f"{clock}_ms"]["median"] for record in records],
        }
        for at, name in enumerate(records[0]["variants"])
    ]
    ticks = {"tickvals": x, "ticktext": [f"{value:,}" for value in x]}
    axes = {"x": {"title": axis, "type": "log", **ticks}, "y": {"title": f"{clock} ms", "type": "log"}}
    return f"{SCALING} {axis}", traces, axes
