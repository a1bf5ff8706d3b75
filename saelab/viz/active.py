"""How many features are active on a token: the distribution over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import plotly.graph_objects as go

from saelab.viz.curves import Shown
from saelab.viz.text import plotly_text
from saelab.viz.theme import Axis, finish, line_of, new_figure, style_of, thinned

SHOWN_SHARE = 0.999
"""The axis ends where every curve has passed this share of the tokens."""

X = Axis(title="active features n on a token")
Y = Axis(title="tokens with at most n", percent=True)


def fig_active(settings: Sequence[Shown]) -> go.Figure:
    """Draw for each number of active features the share of tokens with at most so many, all seeds together.

    Cumulative, so that a rule that keeps the same number on every token (one step) and a rule that does not (a slope)
    can be read in one figure.
    """
    figure = new_figure("Active features per token", X, Y)
    last = 1
    for index, shown in enumerate(settings):
        shares = _cumulative([run.active_histogram for run in shown.runs])
        if not shares:
            continue
        last = max(last, next(n for n, share in enumerate(shares) if share >= SHOWN_SHARE))
        x, y = thinned([float(n) for n in range(len(shares))], shares)
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                mode="lines",
                line=line_of(style_of(index)) | {"shape": "hv"},
                name=plotly_text(shown.label),
                hovertemplate="at most %{x} active: %{y:.2%}<extra></extra>",
            )
        )
    figure.update_xaxes(range=[0, last * 1.05])
    figure.update_yaxes(range=[-0.02, 1.02])
    return finish(figure, X, Y)


def _cumulative(histograms: Sequence[Sequence[int]]) -> list[float]:
    longest = max(map(len, histograms))
    counts = [sum(one[n] for one in histograms if n < len(one)) for n in range(longest)]
    total = sum(counts)
    return [so_far / total for so_far in accumulate(counts)] if total else []
