"""Where the error lies: on tokens after which the model is sure, or on those after which it is not."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from saelab.evaluation.comparison.pareto import Spread, spread_of
from saelab.viz.curves import Shown
from saelab.viz.text import plotly_text
from saelab.viz.theme import Axis, finish, line_of, marker_of, new_figure, style_of

X = Axis(title="model's loss at the token, nats (mean of each tenth)")
Y = Axis(title="FVU within the tenth", from_zero=True)


def fig_difficulty(settings: Sequence[Shown], mean_losses: Sequence[float]) -> go.Figure:
    """Draw the FVU within each tenth of the tokens by the model's loss; means over seeds, bars from least to most.

    Args:
        settings: What to draw.
        mean_losses: Mean loss in each tenth, nats; the labels of the axis.
    """
    figure = new_figure("Error by difficulty of the token", X, Y)
    for index, shown in enumerate(settings):
        by_bin = zip(*(run.fvu_by_difficulty for run in shown.runs), strict=True)
        spreads = [(number, spread_of(values)) for number, values in enumerate(by_bin)]
        found = [(number, spread) for number, spread in spreads if spread is not None]
        if found:
            figure.add_trace(_curve(shown, found, index))
    figure.update_xaxes(
        tickvals=list(range(len(mean_losses))), ticktext=[_short(loss) for loss in mean_losses]
    )
    return finish(figure, X, Y)


def _curve(shown: Shown, found: Sequence[tuple[int, Spread]], index: int) -> go.Scatter:
    style = style_of(index)
    return go.Scatter(
        x=[number for number, _ in found],
        y=[spread.mean for _, spread in found],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [spread.high - spread.mean for _, spread in found],
            "arrayminus": [spread.mean - spread.low for _, spread in found],
            "visible": len(shown.runs) > 1,
            "color": style.colour,
            "thickness": 1.2,
        },
        mode="lines+markers",
        line=line_of(style),
        marker=marker_of(style),
        name=plotly_text(shown.label),
        hovertemplate="FVU %{y:.4f}<extra></extra>",
    )


def _short(loss: float) -> str:
    return f"{loss:.1f}" if loss >= 1 else f"{loss:.2g}" if loss >= 0.001 else f"{loss:.0e}"
