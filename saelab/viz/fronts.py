"""Metrics against the measured L0: one curve for each front, one point for each setting, bars over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from saelab.evaluation.comparison.pareto import Front, FrontPoint, Spread
from saelab.viz.text import plotly_text
from saelab.viz.theme import Axis, finish, line_of, marker_of, new_figure, style_of, thinned

L0_AXIS = Axis(title="L0: active features per token (measured mean)", log=True, octaves=True)
AXES = {
    "fvu": Axis(title="fraction of variance unexplained", log=True),
    "mse": Axis(title="mean squared error", log=True),
    "cosine": Axis(title="cosine of x and its reconstruction"),
    "explained_variance": Axis(title="explained variance", percent=True),
    "ce_spliced": Axis(title="loss with the reconstruction, nats per token"),
    "ce_recovered_zero": Axis(title="loss recovered against zeros", percent=True),
    "ce_recovered_mean": Axis(title="loss recovered against the mean", percent=True),
    "kl": Axis(title="KL(clean || spliced), nats per token", log=True),
    "dead_fraction": Axis(title="features that never fired", percent=True, from_zero=True),
    "dense_fraction": Axis(title="features on over 10 % of tokens", percent=True, from_zero=True),
    "seconds_per_step": Axis(title="wall time per step and SAE, s", from_zero=True),
}
"""The axis of each metric that can be drawn."""
TITLES = {
    "fvu": "Reconstruction",
    "mse": "Reconstruction",
    "cosine": "Reconstruction",
    "explained_variance": "Reconstruction",
    "ce_spliced": "Loss with the reconstruction",
    "ce_recovered_zero": "Loss recovered, zero ablation",
    "ce_recovered_mean": "Loss recovered, mean ablation",
    "kl": "Change of the predictions",
    "dead_fraction": "Dead features",
    "dense_fraction": "Dense features",
    "seconds_per_step": "Time per training step",
}


def fig_front(fronts: Sequence[Front], metric: str) -> go.Figure:
    """Draw a metric against the measured L0.

    Args:
        fronts: One curve each, with the mean over seeds; bars span the smallest and the largest value.
        metric: One of `AXES`.
    """
    figure = new_figure(TITLES[metric], L0_AXIS, AXES[metric])
    for index, front in enumerate(fronts):
        drawn = [
            (point, l0, value)
            for point in front.points
            if (l0 := point.metrics.get("l0")) is not None
            and (value := point.metrics.get(metric)) is not None
            and l0.mean > 0
        ]
        if drawn:
            figure.add_trace(_curve(front.label, drawn, index))
    return finish(figure, L0_AXIS, AXES[metric])


def has_values(fronts: Sequence[Front], metric: str) -> bool:
    """Whether there is anything to draw."""
    return any(l0 > 0 for front in fronts for l0, _ in front.curve(metric))


def _curve(label: str, drawn: Sequence[tuple[FrontPoint, Spread, Spread]], index: int) -> go.Scatter:
    style = style_of(index)
    (kept,) = thinned(range(len(drawn)))
    points = [drawn[int(i)] for i in kept]
    return go.Scatter(
        x=[l0.mean for _, l0, _ in points],
        y=[value.mean for _, _, value in points],
        error_x=_bars([l0 for _, l0, _ in points], style.colour),
        error_y=_bars([value for _, _, value in points], style.colour),
        mode="lines+markers",
        line=line_of(style),
        marker=marker_of(style),
        name=plotly_text(label),
        text=[plotly_text(point.setting) for point, _, _ in points],
        hovertemplate="%{text}<br>L0 %{x:.4g}<br>%{y:.4g}<extra></extra>",
    )


def _bars(spreads: Sequence[Spread], colour: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [spread.high - spread.mean for spread in spreads],
        "arrayminus": [spread.mean - spread.low for spread in spreads],
        "visible": any(spread.n > 1 for spread in spreads),
        "color": colour,
        "thickness": 1.2,
        "width": 3,
    }
