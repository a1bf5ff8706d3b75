"""From tokens to features: which promote them, and which are active on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saelab.features.queries.database import Database
from saelab.features.queries.rows import read_rows
from saelab.features.records import FeatureRow


@dataclass(frozen=True, kw_only=True)
class Promoter:
    """A feature that promotes a token."""

    row: FeatureRow
    """The feature."""
    token: int
    """Id of the one that it promotes most, of those that were asked for."""
    logit: float
    """Direct effect on that token's logit, for an activation of 1."""


@dataclass(frozen=True, kw_only=True)
class ActiveOn:
    """A feature that is active on a token."""

    row: FeatureRow
    """The feature."""
    token: int
    """Id of the one on which most of its activation falls, of those that were asked for."""
    share: float
    """Share of the feature's activation on that token."""
    n_fires: int
    """Occurrences of that token on which it was active."""


@dataclass(frozen=True, kw_only=True)
class TokenSearch:
    """What features do with the tokens of a text."""

    tokens: tuple[int, ...]
    """Ids of the tokens that were looked for."""
    promoters: tuple[Promoter, ...]
    """Features that promote one of them, largest effect first; empty without an unembedding."""
    active_on: tuple[ActiveOn, ...]
    """Features that are active on one of them, largest share first."""


def tokens_containing(database: Database, text: str) -> list[int]:
    """Return the ids of the tokens whose text contains a text, ascending."""
    rows = database.select(
        "SELECT token_id FROM vocabulary WHERE contains(text, ?) ORDER BY token_id", [text]
    )
    return [row["token_id"] for row in rows]


def search_tokens(database: Database, tokens: Sequence[int], limit: int, *, has_logits: bool) -> TokenSearch:
    """Return what features do with some tokens, each feature once in either list.

    Args:
        database: The tables; `Database.require_active_on` was called.
        tokens: Ids.
        limit: Features of either list at most.
        has_logits: Whether the index knows what features promote.
    """
    found = _best(database, "logit", "logit_inverse", tokens, limit) if has_logits and tokens else []
    active = _best(database, "share", "active_on", tokens, limit, ", n_fires") if tokens else []
    rows = read_rows(database, [raw["feature"] for raw in (*found, *active)])
    return TokenSearch(
        tokens=tuple(tokens),
        promoters=tuple(
            Promoter(row=rows[raw["feature"]], token=raw["token"], logit=raw["logit"]) for raw in found
        ),
        active_on=tuple(
            ActiveOn(row=rows[raw["feature"]], token=raw["token"], share=raw["share"], n_fires=raw["n_fires"])
            for raw in active
        ),
    )


def _best(
    database: Database, value: str, table: str, tokens: Sequence[int], limit: int, more: str = ""
) -> list[Mapping[str, Any]]:
    return list(
        database.select(
            f"SELECT feature, token, {value}{more} FROM {table} "
            "WHERE token IN (SELECT unnest(?::UINTEGER[])) "
            f"QUALIFY row_number() OVER (PARTITION BY feature ORDER BY {value} DESC, token) = 1 "
            f"ORDER BY {value} DESC, feature LIMIT ?",
            [list(tokens), limit],
        )
    )
