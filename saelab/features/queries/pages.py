"""Pages of features: filtered, sorted, counted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from saelab.errors import UsageError
from saelab.features.queries.database import Database
from saelab.features.queries.filters import FeatureFilter
from saelab.features.queries.rows import feature_row
from saelab.features.records import FeatureRow

MAX_PAGE = 10_000
"""Rows of one page at most: more would be slow to show and large to send."""


class Sort(StrEnum):
    """Columns by which features can be sorted."""

    FEATURE = "feature"
    NAME = "name"
    LABEL = "label"
    N_FIRES = "n_fires"
    DENSITY = "density"
    N_DOCUMENTS = "n_documents"
    MAX_ACT = "max_act"
    MEAN_ACTIVE = "mean_active"
    STD_ACTIVE = "std_active"
    SKEW = "skew"
    KURTOSIS = "kurtosis"
    P50 = "p50"
    P90 = "p90"
    P99 = "p99"
    DECODER_NORM = "decoder_norm"
    ENCODER_DECODER_COSINE = "encoder_decoder_cosine"
    ENCODER_BIAS = "encoder_bias"
    THRESHOLD = "threshold"
    LOGIT_MAX = "logit_max"
    LOGIT_MIN = "logit_min"
    LOGIT_KURTOSIS = "logit_kurtosis"
    TOP_TOKEN_SHARE = "top_token_share"
    PREVIOUS_TOKEN_SHARE = "previous_token_share"
    NEXT_TOKEN_SHARE = "next_token_share"
    FIRST_POSITION_SHARE = "first_position_share"
    MAX_DECODER_COSINE = "max_decoder_cosine"


@dataclass(frozen=True)
class Page:
    """Some of the features that meet a condition."""

    rows: tuple[FeatureRow, ...]
    """In the order that was asked for; ties by feature, undefined numbers last."""
    total: int
    """How many features meet the condition."""


def require_limit(limit: int) -> None:
    """Refuse more features at once than are sensible.

    Raises:
        UsageError: Naming what is.
    """
    if not 0 <= limit <= MAX_PAGE:
        raise UsageError(f"index: limit is {limit:,}; at most {MAX_PAGE:,} features are given at a time")


def read_page(
    database: Database, where: FeatureFilter, sort: str, *, descending: bool, limit: int, offset: int
) -> Page:
    """Return a page.

    Raises:
        UsageError: The column cannot be sorted by, or limit or offset is out of range.
    """
    if sort not in list(Sort):
        raise UsageError(f"index: cannot sort by {sort!r}; choose one of {', '.join(Sort)}")
    require_limit(limit)
    if not 0 <= offset < 2**32:
        raise UsageError(f"index: offset is {offset:,}; a page begins at a row from 0")
    condition, parameters = where.to_sql()
    order = f"{Sort(sort).value} {'DESC' if descending else 'ASC'} NULLS LAST, feature"
    rows = database.select(
        f"SELECT * FROM features WHERE {condition} ORDER BY {order} LIMIT ? OFFSET ?",
        [*parameters, limit, offset],
    )
    count = database.select(f"SELECT count(*) AS n FROM features WHERE {condition}", parameters)
    return Page(tuple(map(feature_row, rows)), count[0]["n"])
