"""Curves of single runs: which are drawn where there are many, and under which name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from saelab.evaluation.comparison.result import ComparedRun, Comparison

MOST_CURVES = 8
"""Curves that a figure of single runs shows; more cannot be told apart on paper."""


@dataclass(frozen=True)
class Shown:
    """The runs of one setting, drawn as one curve."""

    label: str
    """Label of the setting."""
    runs: tuple[ComparedRun, ...]
    """They differ in the seed alone."""


def shown_settings(comparison: Comparison) -> list[Shown]:
    """Choose the settings whose curves are drawn: all where there are at most eight.

    Of more, one of each front: the one whose L0 is nearest, in its logarithm, to the common L0 of the fronts or to the
    middle of all; and of those the first eight.
    """
    gathered: dict[str, list[ComparedRun]] = {}
    for run in comparison.runs:
        gathered.setdefault(run.row.setting, []).append(run)
    every = [Shown(label, tuple(runs)) for label, runs in gathered.items()]
    if len(every) <= MOST_CURVES:
        return every
    at = comparison.common_l0 or _middle(every)
    nearest: dict[str, Shown] = {}
    for one in every:
        front = one.runs[0].row.front
        if front not in nearest or _distance(one, at) < _distance(nearest[front], at):
            nearest[front] = one
    return list(nearest.values())[:MOST_CURVES]


def _middle(every: Sequence[Shown]) -> float:
    logs = sorted(math.log(l0) for one in every if (l0 := one.runs[0].row.l0))
    return math.exp(logs[len(logs) // 2]) if logs else 1.0


def _distance(one: Shown, at: float) -> float:
    l0 = one.runs[0].row.l0
    return abs(math.log(l0 / at)) if l0 else math.inf
