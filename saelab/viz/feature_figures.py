"""Figures of one feature and of all features of an index."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from saelab.features.records import FeatureRow, FeatureView, Histogram
from saelab.viz.text import plotly_text
from saelab.viz.theme import COLOURS, GREY, Axis, finish, marker_of, new_figure, style_of, thinned
from saelab.viz.visible import visible_text

BINS_PER_DECADE = 8
"""Bins of the histograms over all features."""
LONGEST_NAME = 40


def fig_act_hist(view: FeatureView, *, log: bool = True, value: float | None = None) -> go.Figure:
    """Draw how often a feature is active how strongly.

    Args:
        view: What the index knows of it.
        log: Whether counts are drawn on a logarithmic axis.
        value: An activation to mark, for example that of a token under the pointer.
    """
    x, y = Axis(title="activation where active"), Axis(title="tokens", log=log)
    figure = new_figure(f"Activations of feature {view.row.feature}", x, y)
    _add_bars(figure, view.detail.activations, noun="tokens", empty=not log)
    for name, at in (("p50", view.row.p50), ("p90", view.row.p90), ("p99", view.row.p99), ("here", value)):
        if at is not None:
            dash, colour = ("solid", COLOURS[1]) if name == "here" else ("dot", GREY)
            figure.add_vline(
                x=at,
                line={"dash": dash, "color": colour, "width": 1.5},
                annotation={"text": name, "yanchor": "bottom"},
            )
    figure.update_layout(showlegend=False)
    return finish(figure, x, y)


def fig_logits(view: FeatureView, *, log: bool = True) -> go.Figure:
    """Draw what a feature does to the logits of all tokens; empty without an unembedding."""
    x, y = (
        Axis(title="effect of an activation of 1 on a logit"),
        Axis(title="tokens of the vocabulary", log=log),
    )
    figure = new_figure(f"Direct effect of feature {view.row.feature} on logits", x, y)
    _add_bars(figure, view.detail.logits, noun="tokens", empty=not log)
    figure.update_layout(showlegend=False)
    return finish(figure, x, y)


def fig_feature_density(rows: Sequence[FeatureRow]) -> go.Figure:
    """Draw how many features are how dense, in logarithmic bins; dead ones are counted in the title."""
    x, y = Axis(title="density: share of tokens", log=True), Axis(title="features", from_zero=True)
    dead = sum(row.n_fires == 0 for row in rows)
    figure = new_figure(f"Density of {len(rows) - dead:,} features; {dead:,} never fired", x, y)
    _add_bars(figure, log_histogram([row.density for row in rows if row.n_fires]), noun="features")
    figure.update_layout(showlegend=False)
    return finish(figure, x, y)


def fig_max_act(rows: Sequence[FeatureRow]) -> go.Figure:
    """Draw how strong features become, in logarithmic bins."""
    x, y = Axis(title="largest activation", log=True), Axis(title="features", from_zero=True)
    figure = new_figure("Largest activation of features", x, y)
    _add_bars(figure, log_histogram([row.max_act for row in rows if row.max_act]), noun="features")
    figure.update_layout(showlegend=False)
    return finish(figure, x, y)


def fig_density_strength(rows: Sequence[FeatureRow], *, names: bool = True) -> go.Figure:
    """Draw density against the mean activation where active, at most 2,000 features, evenly chosen by density.

    Args:
        rows: The features.
        names: Show their names under the pointer.
    """
    x, y = (
        Axis(title="density: share of tokens", log=True),
        Axis(title="mean activation where active", log=True),
    )
    figure = new_figure("Density and strength of features", x, y)
    alive = sorted((row for row in rows if row.n_fires and row.mean_active), key=lambda row: row.density)
    (places,) = thinned(range(len(alive))) if alive else ([],)
    chosen = [alive[int(place)] for place in places]
    figure.add_trace(
        go.Scatter(
            x=[row.density for row in chosen],
            y=[row.mean_active for row in chosen],
            mode="markers",
            marker=marker_of(style_of(0)) | {"size": 4, "opacity": 0.5},
            text=[_named(row) if names else f"feature {row.feature}" for row in chosen],
            hovertemplate="%{text}<br>density %{x:.3g}, mean %{y:.3g}<extra></extra>",
        )
    )
    figure.update_layout(showlegend=False)
    return finish(figure, x, y)


def fig_neighbors(view: FeatureView) -> go.Figure:
    """Draw the cosines of a feature's nearest neighbours by rank; empty where the index has none."""
    x, y = (
        Axis(title="rank of the neighbour", from_zero=True),
        Axis(title="cosine of decoder rows", from_zero=True),
    )
    figure = new_figure(f"Neighbours of feature {view.row.feature}", x, y)
    figure.add_trace(
        go.Scatter(
            x=list(range(1, len(view.neighbors) + 1)),
            y=[one.cosine for one in view.neighbors],
            mode="lines+markers",
            marker=marker_of(style_of(0)),
            text=[f"{one.other}: {_short(view.names.get(one.other, ''))}" for one in view.neighbors],
            hovertemplate="%{text}<br>cosine %{y:.3f}<extra></extra>",
        )
    )
    figure.update_layout(showlegend=False)
    return finish(figure, x, y)


def log_histogram(values: Sequence[float]) -> Histogram:
    """Return counts of positive values in bins of equal ratio whose edges are powers of 10^(1/8)."""
    if not values:
        return Histogram(edges=(), counts=())
    places = [math.floor(math.log10(value) * BINS_PER_DECADE + 1e-9) for value in values]
    first, last = min(places), max(places)
    counts = [0] * (last - first + 1)
    for place in places:
        counts[place - first] += 1
    edges = tuple(10.0 ** (place / BINS_PER_DECADE) for place in range(first, last + 2))
    return Histogram(edges=edges, counts=tuple(counts))


def _add_bars(figure: go.Figure, histogram: Histogram, *, noun: str, empty: bool = True) -> None:
    """Draw a histogram as steps, which need no width of bars on a logarithmic axis."""
    bins = list(zip(histogram.edges[:-1], histogram.edges[1:], histogram.counts, strict=True))
    x = [edge for low, high, _ in bins for edge in (low, high)]
    # A logarithmic axis has no place for an empty bin: the line is broken there.
    y = [None if count == 0 and not empty else count for _, _, count in bins for _ in range(2)]
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": COLOURS[0], "width": 1.5},
            fill="tozeroy" if empty else None,
            text=[
                f"{low:.4g} to {high:.4g}: {count:,} {noun}" for low, high, count in bins for _ in range(2)
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    )


def _named(row: FeatureRow) -> str:
    return f"feature {row.feature}: {_short(row.shown_name)}"


def _short(name: str) -> str:
    return plotly_text(visible_text(name)[:LONGEST_NAME])
