"""Figures hold the numbers that they are given, tell curves apart without colour, and stay small."""

import itertools
import math

import pytest
from viz_helpers import EVIL, made_comparison, made_row, made_run

from saelab.evaluation.comparison.pareto import fronts_of
from saelab.evaluation.comparison.profile import DensityCurve
from saelab.viz import theme
from saelab.viz.active import fig_active
from saelab.viz.comparison import comparison_figures
from saelab.viz.consistency import fig_consistency
from saelab.viz.curves import MOST_CURVES, Shown, shown_settings
from saelab.viz.density import fig_density
from saelab.viz.difficulty import fig_difficulty
from saelab.viz.fronts import AXES, fig_front, has_values
from saelab.viz.text import plotly_text


def shown(*runs, label="a"):
    return Shown(label, runs)


def test_a_front_is_drawn_at_the_measured_l0_with_the_range_over_seeds():
    figure = fig_front(made_comparison(ks=(8, 32)).fronts, "fvu")
    assert [trace.name for trace in figure.data] == ["topk", "other"]
    curve = figure.data[0]
    assert list(curve.x) == [8.25, 32.25]
    assert list(curve.y) == pytest.approx([1 / 8 + 0.005, 1 / 32 + 0.005])
    assert list(curve.error_y.array) == pytest.approx([0.005, 0.005])
    assert list(curve.error_x.arrayminus) == pytest.approx([0.25, 0.25])
    assert curve.error_y.visible is True
    assert list(curve.text) == ["topk, k=8", "topk, k=32"]


def test_one_seed_has_no_bars():
    (curve,) = fig_front(made_comparison(recipes=("topk",), seeds=(0,)).fronts, "fvu").data
    assert curve.error_y.visible is False


@pytest.mark.parametrize("metric", AXES)
def test_every_metric_has_an_axis_and_a_title(metric):
    figure = fig_front(made_comparison().fronts, metric)
    assert figure.layout.title.text and figure.layout.yaxis.title.text == AXES[metric].title
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "white"
    assert "active features per token" in figure.layout.xaxis.title.text


def test_axes_are_logarithmic_only_where_every_value_is_positive():
    fronts = made_comparison().fronts
    assert fig_front(fronts, "kl").layout.yaxis.type == "log"
    assert fig_front(fronts, "ce_recovered_zero").layout.yaxis.type == "linear"
    zero = fronts_of([("a", "a", {"l0": 4.0, "kl": 0.0})], ("l0", "kl"))
    figure = fig_front(zero, "kl")
    assert (figure.layout.yaxis.type, figure.layout.xaxis.type) == ("linear", "log")


def test_what_is_not_defined_is_not_drawn():
    fronts = fronts_of(
        [("a", "a", {"l0": 4.0, "kl": None}), ("b", "b", {"l0": 0.0, "kl": 1.0})], ("l0", "kl")
    )
    assert not has_values(fronts, "kl") and not fig_front(fronts, "kl").data
    assert has_values(made_comparison().fronts, "kl")


def test_the_active_features_are_cumulative_over_all_seeds():
    row = made_row()
    runs = [made_run(row, active_histogram=(1, 0, 3)), made_run(row, active_histogram=(0, 4))]
    (curve,) = fig_active([shown(*runs)]).data
    assert (list(curve.x), list(curve.y)) == ([0, 1, 2], [1 / 8, 5 / 8, 1.0])
    assert curve.line.shape == "hv"


def test_densities_are_drawn_with_their_fit():
    figure = fig_density([shown(made_run(made_row()))])
    curve, fit = figure.data
    assert list(curve.y) == [0.4, 0.2, 0.1] and curve.name == "a (a = 1.00)"
    assert list(fit.y) == pytest.approx([0.4, 0.2, 0.1]) and fit.showlegend is False
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    empty = made_run(made_row(), density=DensityCurve(ranks=(), densities=(), zipf=None))
    assert not fig_density([shown(empty)]).data


def test_error_by_difficulty_is_the_mean_over_seeds():
    comparison = made_comparison(recipes=("topk",), ks=(8,))
    (curve,) = fig_difficulty(shown_settings(comparison), comparison.difficulty).data
    assert list(curve.x) == list(range(10))
    means = [(1 / 8 + 0.005) * (1 + 0.1 * number) for number in range(10)]
    assert list(curve.y) == pytest.approx(means)
    assert list(curve.error_y.array) == pytest.approx([0.005 * (1 + 0.1 * number) for number in range(10)])


def test_consistency_shows_the_curve_and_the_partnered_share():
    curve, marker = fig_consistency(made_comparison().consistency).data
    assert (list(curve.x), list(curve.y)) == ([0.0, 0.5, 1.0], [1.0, 0.75, 0.0])
    assert (list(marker.x), list(marker.y)) == ([0.9], [0.5])
    assert (list(marker.error_y.array), list(marker.error_y.arrayminus)) == ([0.25], [0.25])


def test_few_settings_are_all_drawn_and_of_many_one_of_each_front_near_the_common_l0():
    few = shown_settings(made_comparison(ks=(8, 32)))
    assert [one.label for one in few] == ["topk, k=8", "topk, k=32", "other, k=8", "other, k=32"]
    assert all(len(one.runs) == 2 for one in few)
    many = made_comparison(ks=(4, 8, 16, 32, 64))
    assert many.common_l0 == pytest.approx(math.sqrt(4.25 * 64.25))
    assert [one.label for one in shown_settings(many)] == ["topk, k=16", "other, k=16"]
    recipes = [f"r{number}" for number in range(12)]
    assert len(shown_settings(made_comparison(recipes=recipes))) == MOST_CURVES


def test_a_trace_has_at_most_two_thousand_points():
    many = list(range(1, 5001))
    long = made_run(
        made_row(),
        active_histogram=(1,) * 5000,
        density=DensityCurve(ranks=tuple(many), densities=tuple(1 / n for n in many), zipf=None),
    )
    fronts = fronts_of([("a", str(n), {"l0": float(n), "fvu": 1 / n}) for n in many], ("l0", "fvu"))
    for figure in (fig_active([shown(long)]), fig_density([shown(long)]), fig_front(fronts, "fvu")):
        for trace in figure.data:
            assert len(trace.x) == len(trace.y) == theme.MOST_POINTS
            assert (trace.x[0], trace.x[-1]) in ((1, 5000), (0, 4999))


def test_curves_differ_in_more_than_colour():
    styles = [theme.style_of(index) for index in range(168)]
    assert len(set(styles)) == 168
    for one, other in itertools.pairwise(styles):
        assert one.colour != other.colour and one.dash != other.dash and one.marker != other.marker


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.9, 60, [1, 2, 5, 10, 20, 50]),
        (0.2, 0.7, [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        (1e-6, 1.0, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1]),
        (0.30, 0.31, []),
    ],
)
def test_ticks_of_logarithmic_axes_are_round(low, high, ticks):
    assert theme.log_ticks(low, high) == pytest.approx(ticks)


def test_ticks_of_l0_are_powers_of_two():
    assert theme.octave_ticks(7, 70) == [8, 16, 32, 64]
    assert theme.octave_ticks(9, 15) == []
    assert len(theme.octave_ticks(1, 2**15)) <= 10
    figure = fig_front(made_comparison().fronts, "fvu")
    assert list(figure.layout.xaxis.ticktext) == ["8", "16", "32"]


def test_every_figure_of_a_comparison_is_there_with_a_caption():
    titles = [one.figure.layout.title.text for one in comparison_figures(made_comparison())]
    assert titles == [
        "Reconstruction",
        "Loss recovered, zero ablation",
        "Loss recovered, mean ablation",
        "Change of the predictions",
        "Dead features",
        "Dense features",
        "Active features per token",
        "Density of features by rank",
        "Features that another seed finds too",
        "Error by difficulty of the token",
        "Time per training step",
    ]
    assert all(one.caption for one in comparison_figures(made_comparison()))
    without = comparison_figures(made_comparison(consistency=(), difficulty=()))
    assert len(without) == len(titles) - 2


def test_names_are_shown_as_they_are():
    comparison = made_comparison(recipes=(EVIL,), ks=(8,))
    for one in comparison_figures(comparison):
        for trace in one.figure.data:
            said = [trace.name or "", *(trace.text or ())]
            assert all("<b" not in text and "<script" not in text for text in said)


def test_plotly_text_escapes_and_cuts():
    assert plotly_text("a <b>&amp;") == "a &lt;b>&amp;amp;"
    assert plotly_text("two\nlines\tand   more") == "two lines and more"
    assert plotly_text("x" * 200) == "x" * 200
    assert plotly_text("<" * 201) == "&lt;" * 199 + "…"
