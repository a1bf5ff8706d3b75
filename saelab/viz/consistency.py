"""Whether another seed finds the same features."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from saelab.evaluation.comparison.seeds import THRESHOLD, SeedConsistency
from saelab.viz.text import plotly_text
from saelab.viz.theme import GREY, Axis, finish, line_of, marker_of, new_figure, style_of, thinned

X = Axis(title="cosine c of decoder directions")
Y = Axis(title="features with nearest cosine ≥ c", percent=True)


def fig_consistency(settings: Sequence[SeedConsistency]) -> go.Figure:
    """Draw the share of features whose nearest feature of another seed has at least a cosine.

    The marker at 0.9 is the share with a partner of their own, one to one, with the range over pairs of seeds.
    """
    figure = new_figure("Features that another seed finds too", X, Y)
    for index, one in enumerate(settings):
        style = style_of(index)
        x, y = thinned(one.cosines, one.share_above)
        label = plotly_text(one.setting)
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                mode="lines",
                line=line_of(style),
                name=label,
                hovertemplate="cosine %{x:.2f}: %{y:.1%}<extra></extra>",
            )
        )
        figure.add_trace(
            go.Scatter(
                x=[THRESHOLD],
                y=[one.partnered_share],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [one.high - one.partnered_share],
                    "arrayminus": [one.partnered_share - one.low],
                    "visible": one.n_seeds > 2,
                    "color": style.colour,
                },
                mode="markers",
                marker=marker_of(style),
                showlegend=False,
                name=label,
                hovertemplate="one to one above 0.9: %{y:.1%}<extra></extra>",
            )
        )
    figure.add_vline(x=THRESHOLD, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.update_xaxes(range=[0, 1.02])
    figure.update_yaxes(range=[-0.02, 1.02])
    return finish(figure, X, Y)
