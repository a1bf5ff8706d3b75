"""On which tokens, after which and before which a feature is active, weighted by its activation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saelab.features.building.corpus import Corpus
from saelab.features.records import TokenShare

TOKENS = 20
"""Tokens that are listed of a feature."""
POSITION_BINS = 16


@dataclass(frozen=True)
class TokenStatistics:
    """Of one feature that fired; shares are of its summed activation, in float64."""

    tokens: tuple[TokenShare, ...]
    """Strongest first, ties by id; at most 20."""
    previous: tuple[int, float] | None
    """The token that stands most often right before, within row and document; None where there is never one."""
    next: tuple[int, float] | None
    """The token that follows most often."""
    first_position_share: float
    """On the first kept position of rows."""
    positions: tuple[float, ...]
    """Share of the firings in each sixteenth of the context."""


@dataclass(frozen=True)
class TokensAround:
    """The part of the statistics that a sample of the firings gives an estimate of."""

    tokens: tuple[TokenShare, ...]
    previous: tuple[int, float] | None
    next: tuple[int, float] | None


def tokens_around(corpus: Corpus, positions: NDArray[np.int64], values: NDArray[np.float32]) -> TokensAround:
    """Return on, after and before which tokens there are activations, of which there is at least one."""
    wide, tokens = values.astype(np.float64), corpus.tokens
    total = float(wide.sum())
    start, end = corpus.span_of(positions)
    before, after = positions > start, positions + 1 < end
    return TokensAround(
        _shares(tokens[positions], wide, total),
        _strongest(tokens[positions[before] - 1], wide[before], total),
        _strongest(tokens[positions[after] + 1], wide[after], total),
    )


class TokenCounter:
    """Counts tokens around firings.

    Args:
        corpus: Its tokens and rows.
        positions: Position of the token of each activation row.
    """

    def __init__(self, corpus: Corpus, positions: NDArray[np.int64]) -> None:
        self._corpus, self._positions = corpus, positions
        self._owner = corpus.row_of(positions)
        self._context = int(np.diff(corpus.row_starts).max())
        self._is_first = np.append(True, self._owner[1:] != self._owner[:-1]) if len(positions) else None

    def count(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> TokenStatistics:
        """Return the statistics of a feature's firings, of which there is at least one."""
        wide = values.astype(np.float64)
        total = float(wide.sum())
        positions, owner = self._positions[rows], self._owner[rows]
        offsets = positions - self._corpus.row_starts[owner]
        assert self._is_first is not None
        bins = np.bincount(offsets * POSITION_BINS // self._context, minlength=POSITION_BINS)
        around = tokens_around(self._corpus, positions, values)
        return TokenStatistics(
            tokens=around.tokens,
            previous=around.previous,
            next=around.next,
            first_position_share=float(wide[self._is_first[rows]].sum()) / total,
            positions=tuple((bins / len(rows)).tolist()),
        )


def _shares(tokens: NDArray[np.int32], values: NDArray[np.float64], total: float) -> tuple[TokenShare, ...]:
    ids, place, fires = np.unique(tokens, return_inverse=True, return_counts=True)
    mass = np.bincount(place, weights=values, minlength=len(ids))
    order = np.argsort(-mass, kind="stable")[:TOKENS]
    return tuple(
        TokenShare(token=int(ids[i]), share=float(mass[i]) / total, n_fires=int(fires[i])) for i in order
    )


def _strongest(
    tokens: NDArray[np.int32], values: NDArray[np.float64], total: float
) -> tuple[int, float] | None:
    if not len(tokens):
        return None
    ids, place = np.unique(tokens, return_inverse=True)
    mass = np.bincount(place, weights=values, minlength=len(ids))
    best = int(np.argmax(mass))
    return int(ids[best]), float(mass[best]) / total
