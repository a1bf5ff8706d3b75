"""The numbers and the lists of single features, out of their tables' rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saelab.errors import DamagedFileError
from saelab.features.queries.database import Database
from saelab.features.records import FeatureDetail, FeatureRow, Histogram, TokenEffect, TokenShare
from saelab.features.schema import DETAIL

ALL_NUMBERS = "SELECT * FROM features"


def feature_row(raw: Mapping[str, Any]) -> FeatureRow:
    """Turn a row of the view ``features`` into a record."""
    return FeatureRow(**raw)


def read_row(database: Database, feature: int) -> FeatureRow:
    """Return the numbers of a feature that there is."""
    return feature_row(database.select(f"{ALL_NUMBERS} WHERE feature = ?", [feature])[0])


def read_rows(database: Database, features: Sequence[int]) -> dict[int, FeatureRow]:
    """Return the numbers of several features.

    Raises:
        DamagedFileError: There is no such feature, so that the table that speaks of it is not sound.
    """
    return {raw["feature"]: feature_row(raw) for raw in _select_all(database, "*", features)}


def read_names(database: Database, features: Sequence[int]) -> dict[int, str]:
    """Return the labels of several features, or their names where they have none.

    Raises:
        DamagedFileError: There is no such feature, so that the table that speaks of it is not sound.
    """
    found = _select_all(database, "feature, name, label", features)
    return {raw["feature"]: raw["label"] or raw["name"] for raw in found}


def _select_all(database: Database, columns: str, features: Sequence[int]) -> list[dict[str, Any]]:
    wanted = sorted(set(features))
    found = database.select(
        f"SELECT {columns} FROM features WHERE feature IN (SELECT unnest(?::UINTEGER[]))", [wanted]
    )
    if len(found) != len(wanted):
        missing = set(wanted) - {raw["feature"] for raw in found}
        raise DamagedFileError(
            f"{database.folder}: a table names feature {min(missing)}, which there is not; build the index again"
        )
    return found


def read_detail(database: Database, feature: int, n_vocabulary: int) -> FeatureDetail:
    """Return the lists of a feature that there is.

    Raises:
        DamagedFileError: Lists that belong together differ in length, one is missing, or a token is not of the
            vocabulary.
    """
    rows = database.select("SELECT * FROM feature_detail WHERE feature = ?", [feature])
    try:
        (raw,) = rows
        if max((*raw["promoted"], *raw["suppressed"], *raw["tokens"]), default=0) >= n_vocabulary:
            raise ValueError("a token is not of the vocabulary")
        return FeatureDetail(
            feature=feature,
            activations=_histogram(raw, "histogram"),
            log_activations=tuple(raw["log_histogram_counts"]),
            intervals=_histogram(raw, "interval"),
            promoted=_effects(raw, "promoted"),
            suppressed=_effects(raw, "suppressed"),
            logits=_histogram(raw, "logit"),
            tokens=tuple(
                TokenShare(token=token, share=share, n_fires=n_fires)
                for token, share, n_fires in zip(
                    raw["tokens"], raw["token_shares"], raw["token_fires"], strict=True
                )
            ),
            positions=tuple(raw["position_shares"]),
        )
    except (TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{database.folder / DETAIL}: the lists of feature {feature} do not fit: {error}"
        ) from error


def _histogram(raw: Mapping[str, Any], name: str) -> Histogram:
    edges, counts = tuple(raw[f"{name}_edges"]), tuple(raw[f"{name}_counts"])
    if len(edges) != (len(counts) + 1 if counts else 0):
        raise ValueError(f"{name} has {len(edges)} edges and {len(counts)} counts")
    return Histogram(edges=edges, counts=counts)


def _effects(raw: Mapping[str, Any], name: str) -> tuple[TokenEffect, ...]:
    pairs = zip(raw[name], raw[f"{name}_logits"], strict=True)
    return tuple(TokenEffect(token=token, logit=logit) for token, logit in pairs)
