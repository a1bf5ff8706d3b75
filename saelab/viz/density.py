"""How often features fire, by rank, with the Zipf curve that fits."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import torch

from saelab.evaluation.comparison.profile import DensityCurve
from saelab.viz.curves import Shown
from saelab.viz.text import plotly_text
from saelab.viz.theme import Axis, Style, finish, line_of, new_figure, style_of, thinned

X = Axis(title="rank of the feature, densest first", log=True)
Y = Axis(title="density: share of tokens", log=True)


def fig_density(settings: Sequence[Shown]) -> go.Figure:
    """Draw the density of each feature against its rank, the first seed of each setting; fits are thin lines."""
    figure = new_figure("Density of features by rank", X, Y)
    for index, shown in enumerate(settings):
        curve, style = shown.runs[0].density, style_of(index)
        if not curve.ranks:
            continue
        x, y = thinned(curve.ranks, curve.densities)
        exponent = "" if curve.zipf is None else f" (a = {curve.zipf.exponent:.2f})"
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                mode="lines",
                line=line_of(style),
                name=plotly_text(shown.label) + exponent,
                hovertemplate="rank %{x}: %{y:.3g}<extra></extra>",
            )
        )
        if (fit := _fit(curve, style)) is not None:
            figure.add_trace(fit)
    return finish(figure, X, Y)


def _fit(curve: DensityCurve, style: Style) -> go.Scatter | None:
    if curve.zipf is None:
        return None
    (ranks,) = thinned(curve.ranks)
    return go.Scatter(
        x=ranks,
        y=curve.zipf.expected(torch.tensor(ranks, dtype=torch.float64)).tolist(),
        mode="lines",
        line={"color": style.colour, "width": 0.8},
        showlegend=False,
        hoverinfo="skip",
    )
