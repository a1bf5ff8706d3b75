"""Which features of an index are worth showing first: those that a person can read at a glance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, zip_longest

from saelab.features.records import FeatureRow

DENSITIES = (5e-4, 2e-2)
"""Rarer features have too few examples to judge, denser ones are seldom about one thing."""
MIN_ACTIVE = 8
"""Tokens that a feature must be active on, whatever its density."""
Place = Callable[[FeatureRow], tuple[int | None, float | None]]
_PLACES: tuple[Place, ...] = (
    lambda row: (row.top_token, row.top_token_share),
    lambda row: (row.previous_token, row.previous_token_share),
    lambda row: (row.next_token, row.next_token_share),
)
RULE = (
    f"Chosen by a rule, not by hand: features with a density from {DENSITIES[0]:g} to {DENSITIES[1]:g} and at least "
    f"{MIN_ACTIVE} active tokens, in turn the one with the largest share of its activation on one token, right after "
    "one token, and right before one token, each token once. Such features are easy to read; they are not a fair "
    "sample of all."
)


def telling_features(rows: Iterable[FeatureRow], n: int) -> list[int]:
    """Choose ``n`` features that are easy to read by `RULE`; fewer where fewer qualify. Ties are in index order."""
    able = [row for row in rows if row.n_fires >= MIN_ACTIVE and DENSITIES[0] <= row.density <= DENSITIES[1]]
    chosen: dict[int, None] = {}
    in_turn = chain.from_iterable(zip_longest(*(_ranked(able, place) for place in _PLACES)))
    for feature in in_turn:
        if len(chosen) < n and feature is not None:
            chosen.setdefault(feature)
    return list(chosen)


def _ranked(rows: Sequence[FeatureRow], place: Place) -> list[int]:
    """Return the best feature of each token, most concentrated first."""
    found: list[tuple[float, int, int]] = []
    for row in rows:
        token, share = place(row)
        if token is not None and share is not None:
            found.append((-share, row.feature, token))
    best: dict[int, int] = {}
    for _, feature, token in sorted(found):
        best.setdefault(token, feature)
    return list(best.values())
