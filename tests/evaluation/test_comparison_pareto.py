"""Metrics at a common L0, ranges over seeds, and fronts."""

import math

import pytest

from saelab.evaluation.comparison.pareto import common_l0, fronts_of, spread_of, value_at_l0


def test_between_two_points_a_metric_is_linear_in_the_logarithm_of_l0():
    curve = [(8.0, 0.6), (32.0, 0.2)]
    assert value_at_l0(curve, 16.0) == pytest.approx(0.4)
    assert value_at_l0(curve, 8 * 4**0.25) == pytest.approx(0.5)


def test_a_straight_line_in_log_l0_is_reproduced_everywhere():
    def line(l0):
        return 0.9 - 0.11 * math.log(l0)

    curve = [(l0, line(l0)) for l0 in (3.0, 64.0, 8.1, 20.0)]
    for l0 in (3.0, 3.3, 8.1, 10.0, 33.0, 64.0):
        assert value_at_l0(curve, l0) == pytest.approx(line(l0), abs=1e-12)


def test_only_the_neighbours_count():
    curve = [(1.0, 50.0), (10.0, 1.0), (1000.0, 3.0), (10_000.0, -70.0)]
    assert value_at_l0(curve, 100.0) == pytest.approx(2.0)


@pytest.mark.parametrize("l0", [7.99, 32.01, 0.0])
def test_nothing_is_extrapolated(l0):
    assert value_at_l0([(8.0, 0.6), (32.0, 0.2)], l0) is None


def test_one_point_has_a_value_at_its_own_l0_alone():
    assert value_at_l0([(8.0, 0.6)], 8.0) == 0.6
    assert value_at_l0([(8.0, 0.6)], 8.5) is None
    assert value_at_l0([], 8.0) is None


def test_values_at_equal_l0_are_averaged_and_an_l0_of_zero_has_no_logarithm():
    curve = [(8.0, 0.5), (8.0, 0.7), (32.0, 0.2), (0.0, 9.0)]
    assert value_at_l0(curve, 8.0) == pytest.approx(0.6)
    assert value_at_l0(curve, 16.0) == pytest.approx(0.4)


def test_a_spread_is_mean_and_range_and_needs_every_seed():
    spread = spread_of([0.25, 0.5, 1.5])
    assert (spread.mean, spread.low, spread.high, spread.n) == (0.75, 0.25, 1.5, 3)
    assert spread_of([0.25, None]) is None
    assert spread_of([]) is None


def runs(front, *points):
    return [(front, f"{front} {index}", {"l0": l0}) for index, l0 in enumerate(points)]


def test_fronts_gather_seeds_and_are_ordered_by_the_measured_l0():
    found = fronts_of(
        [
            ("a", "a, k=64", {"l0": 60.0, "fvu": 0.1}),
            ("b", "b", {"l0": 5.0, "fvu": None}),
            ("a", "a, k=8", {"l0": 8.0, "fvu": 0.3}),
            ("a", "a, k=64", {"l0": 64.0, "fvu": 0.2}),
        ],
        ("l0", "fvu"),
    )
    assert [front.label for front in found] == ["a", "b"]
    assert [point.setting for point in found[0].points] == ["a, k=8", "a, k=64"]
    assert found[0].curve("fvu") == [(8.0, 0.3), (62.0, pytest.approx(0.15))]
    assert found[0].points[1].metrics["l0"].n == 2
    assert found[1].curve("fvu") == [] and found[1].curve("l0") == [(5.0, 5.0)]


def test_the_common_l0_is_the_geometric_middle_of_what_all_fronts_measured():
    fronts = fronts_of([*runs("a", 4, 64), *runs("b", 8, 128), *runs("c", 2, 32)], ("l0",))
    assert common_l0(fronts) == pytest.approx(16.0)
    assert common_l0(fronts_of([*runs("a", 4, 8), *runs("b", 9, 10)], ("l0",))) is None
    assert common_l0(fronts_of([*runs("a", 4, 8), *runs("b", 8)], ("l0",))) == 8.0
    assert common_l0(fronts_of([*runs("a", 4, 8), *runs("b", None)], ("l0",))) is None
    assert common_l0([]) is None
