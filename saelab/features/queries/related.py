"""Features that are near another one: by their decoder rows, and by the tokens on which they are active."""

from __future__ import annotations

from saelab.features.queries.database import Database
from saelab.features.records import Companion, Neighbor


def read_neighbors(database: Database, feature: int) -> tuple[Neighbor, ...]:
    """Return the features whose decoder rows point the same way, nearest first."""
    rows = database.select("SELECT other, cosine FROM neighbors WHERE feature = ? ORDER BY rank", [feature])
    return tuple(Neighbor(**row) for row in rows)


def read_companions(database: Database, feature: int) -> tuple[Companion, ...]:
    """Return the features that are active on the same tokens, in the order of their rank."""
    rows = database.select(
        "SELECT other, n_sampled, n_both, p_other, lift, phi FROM coactivation WHERE feature = ? ORDER BY rank",
        [feature],
    )
    return tuple(Companion(**row) for row in rows)
