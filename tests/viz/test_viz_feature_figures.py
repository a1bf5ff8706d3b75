"""Figures of features hold the numbers of the records, and text that Plotly shows as it is."""

import pytest
from feature_helpers import made_row, made_view

from saelab.viz.feature_figures import (
    fig_act_hist,
    fig_density_strength,
    fig_feature_density,
    fig_logits,
    fig_max_act,
    fig_neighbors,
    log_histogram,
)


def test_histograms_hold_the_counts():
    figure = fig_act_hist(made_view(), value=3.0)
    (trace,) = figure.data
    assert list(trace.x) == [0.0, 2.0, 2.0, 4.0] and list(trace.y) == [5, 5, 1, 1]
    assert [line.x0 for line in figure.layout.shapes] == [1.5, 3.5, 3.9, 3.0]
    (trace,) = fig_logits(made_view(), log=False).data
    assert list(trace.y) == [4, 4, 6, 6] and trace.text[0] == "-1 to 0: 4 tokens"
    assert list(fig_act_hist(made_view(n_fires=0)).data[0].x) == []


def test_logarithmic_bins():
    found = log_histogram([1.0, 1.1, 10.0, 100.0])
    assert sum(found.counts) == 4 and found.counts[0] == 2 and found.counts[8] == found.counts[16] == 1
    assert len(found.edges) == len(found.counts) + 1
    assert found.edges[0] == 1 and found.edges[8] == pytest.approx(10)
    assert log_histogram([]).counts == ()


def test_figures_over_features():
    rows = [made_row(n, n_fires=n, flags=0) for n in (0, 1, 10, 100)]
    figure = fig_feature_density(rows)
    assert "3 features; 1 never fired" in figure.layout.title.text
    assert sum(list(figure.data[0].y)[::2]) == 3
    assert sum(list(fig_max_act(rows).data[0].y)[::2]) == 3
    (points,) = fig_density_strength(rows).data
    assert list(points.x) == [0.001, 0.01, 0.1] and "<b" not in points.text[0] and "&lt;b" in points.text[0]
    assert len(fig_density_strength([made_row(n, n_fires=n) for n in range(5000)]).data[0].x) == 2000
    assert len(fig_density_strength([]).data[0].x) == 0


def test_neighbours():
    (trace,) = fig_neighbors(made_view()).data
    assert list(trace.x) == [1] and list(trace.y) == [0.9] and trace.text[0].startswith("3: &lt;b")
