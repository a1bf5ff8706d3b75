"""Whether a few tokens of huge norm (attention sinks, BOS) are among the evaluated ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from saelab.activations.store import Store

OUTLIER_FROM = 10.0
"""A token is an outlier when its norm exceeds this multiple of the median norm."""


@dataclass(frozen=True)
class Outliers:
    """Norms of the evaluated activations against their median."""

    ratio: float | None
    """Largest norm / median norm; None for no tokens or where half of them are zero."""
    count: int
    """Tokens whose norm exceeds 10 times the median."""
    warnings: tuple[str, ...]
    """One sentence for a person, or nothing."""


def find_outliers(store: Store, norms: np.ndarray, token_index: np.ndarray) -> Outliers:
    """Compare norms with their median.

    Args:
        store: Says where in its sequence a token stands, where it has tokens.
        norms: Norms of the evaluated activations ``[n]``.
        token_index: Their positions in the store's tokens ``[n]``, int64.
    """
    median = float(np.median(norms)) if len(norms) else 0.0
    if median == 0.0:
        return Outliers(None, 0, ())
    ratio = float(norms.max()) / median
    found = token_index[norms > OUTLIER_FROM * median]
    if len(found) == 0:
        return Outliers(ratio, 0, ())
    place = f", most of them at {_commonest_place(store, found)}" if store.has_tokens else ""
    return Outliers(
        ratio,
        len(found),
        (
            f"{len(found):,} of {len(norms):,} evaluated tokens have a norm above {OUTLIER_FROM:g} times the "
            f"median (the largest {ratio:,.0f} times){place}: fvu, mse and loss recovered describe these few "
            "tokens, not the text; cache again with them masked (mask_bos, mask_first_positions or "
            "mask_norm_ratio)",
        ),
    )


def _commonest_place(store: Store, token_index: np.ndarray) -> str:
    rows = np.searchsorted(store.row_starts, token_index, side="right") - 1
    positions = Counter((token_index - store.row_starts[rows]).tolist())
    # Ties go to the earliest position, so that equal input gives an equal sentence.
    position = min(positions, key=lambda place: (-positions[place], place))
    return f"position {position} of their sequence"
