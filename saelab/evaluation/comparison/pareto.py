"""Metrics against the measured L0: means over seeds, fronts, and their values at one common L0."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A metric over runs that differ in the seed alone."""

    mean: float
    """Mean over the runs."""
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    n: int
    """Runs in which it is defined."""


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """One setting of a front: the runs that differ in the seed alone."""

    setting: str
    """Label of the setting."""
    metrics: dict[str, Spread | None]
    """By the name of the metric; None where it is defined in no run, or not in all of them."""

    def mean(self, metric: str) -> float | None:
        """Return the mean of a metric over seeds; None where it is not defined."""
        spread = self.metrics.get(metric)
        return None if spread is None else spread.mean


@dataclass(frozen=True, kw_only=True)
class Front:
    """The settings that differ in k alone, by rising measured L0."""

    label: str
    """What tells this front from the others."""
    points: tuple[FrontPoint, ...]
    """By rising mean L0; those without an L0 last."""

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """Return (mean L0, mean of the metric) of the points in which both are defined, by rising L0."""
        pairs = [(point.mean("l0"), point.mean(metric)) for point in self.points]
        return [(l0, value) for l0, value in pairs if l0 is not None and value is not None]


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Return mean and range of one metric over seeds; None unless it is defined in every run.

    A mean over the seeds for which a metric happens to be defined would not be comparable.
    """
    defined = [value for value in values if value is not None]
    if not defined or len(defined) < len(values):
        return None
    return Spread(mean=math.fsum(defined) / len(defined), low=min(defined), high=max(defined), n=len(defined))


def fronts_of(
    runs: Sequence[tuple[str, str, Mapping[str, float | None]]], metrics: Sequence[str]
) -> tuple[Front, ...]:
    """Gather runs into fronts, in the order in which the fronts first appear.

    Args:
        runs: For each run the label of its front, that of its setting, and its metrics, ``l0`` among them.
        metrics: Names of the metrics to keep.
    """
    gathered: dict[str, dict[str, list[Mapping[str, float | None]]]] = {}
    for front, setting, values in runs:
        gathered.setdefault(front, {}).setdefault(setting, []).append(values)
    return tuple(
        Front(label=label, points=_points(settings, metrics)) for label, settings in gathered.items()
    )


def value_at_l0(curve: Sequence[tuple[float, float]], l0: float) -> float | None:
    """Return a metric at an L0 that may lie between two measured ones: linear in log L0 between neighbours.

    Args:
        curve: Pairs of a measured L0 > 0 and the metric, in any order; values at equal L0 are averaged.
        l0: Where.

    Returns:
        The metric; None outside the measured range: nothing is extrapolated.
    """
    at: dict[float, list[float]] = {}
    for place, value in curve:
        if place > 0:
            at.setdefault(place, []).append(value)
    points = [(place, math.fsum(values) / len(values)) for place, values in sorted(at.items())]
    for place, value in points:
        if place == l0:
            return value
    for (left, below), (right, above) in itertools.pairwise(points):
        if left < l0 < right:
            share = math.log(l0 / left) / math.log(right / left)
            return below + share * (above - below)
    return None


def common_l0(fronts: Sequence[Front]) -> float | None:
    """Return an L0 inside the measured range of every front: the geometric middle of what they have in common.

    Returns:
        None where there is no front, or the ranges have nothing in common.
    """
    ranges = []
    for front in fronts:
        measured = [l0 for l0, _ in front.curve("l0") if l0 > 0]
        if not measured:
            return None
        ranges.append((measured[0], measured[-1]))
    if not ranges:
        return None
    low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
    if low > high:
        return None
    return low if low == high else math.sqrt(low * high)


def _points(
    settings: Mapping[str, list[Mapping[str, float | None]]], metrics: Sequence[str]
) -> tuple[FrontPoint, ...]:
    found = [
        FrontPoint(
            setting=setting,
            metrics={name: spread_of([values.get(name) for values in runs]) for name in metrics},
        )
        for setting, runs in settings.items()
    ]
    return tuple(sorted(found, key=lambda point: _last_if_none(point.mean("l0"))))


def _last_if_none(value: float | None) -> float:
    return math.inf if value is None else value
