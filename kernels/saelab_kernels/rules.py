"""Selection rules as data: which (token, feature) pairs an encoder keeps. No torch here.

A rule is a name and scalars. The tensors that it needs (budgets, thresholds) are passed beside it, so that
every backend, on every device, interprets the same description, and so that a rule fits in a config file.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class PerToken:
    """The `k` largest of each row (TopK; Gao et al. 2024, arXiv 2406.04093)."""

    k: int
    """Features kept for a token; where `budgets [rows]` are given, the largest budget allowed."""

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool):
            raise TypeError(f"PerToken: k must be an integer, not {self.k!r}")
        if self.k < 1:
            raise ValueError(f"PerToken: k must be at least 1, not {self.k}")


@dataclass(frozen=True, slots=True)
class PerBatch:
    """The `round(k * rows)` largest of the batch (BatchTopK, arXiv 2412.06410; Mutual Choice, 2411.02124)."""

    k: float
    """Mean number of features kept for a token."""

    def __post_init__(self) -> None:
        if not isinstance(self.k, int | float) or isinstance(self.k, bool):
            raise TypeError(f"PerBatch: k must be a number, not {self.k!r}")
        if not math.isfinite(self.k) or self.k <= 0:
            raise ValueError(f"PerBatch: k must be finite and above 0, not {self.k}")

    def budget(self, rows: int) -> int:
        """Pairs kept in a batch of `rows` tokens: Python's `round`, so halves go to the even number."""
        return round(self.k * rows)


@dataclass(frozen=True, slots=True)
class PerFeature:
    """The `budgets[i]` largest of each column i (Feature Choice, arXiv 2411.02124)."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Everything above `theta`, one number or one a feature (JumpReLU, arXiv 2407.14435; ReLU at 0)."""


Rule = PerToken | PerBatch | PerFeature | Threshold

_NAMES: dict[str, type[Rule]] = {
    "per_token": PerToken,
    "per_batch": PerBatch,
    "per_feature": PerFeature,
    "threshold": Threshold,
}


def rule_to_json(rule: Rule) -> dict[str, Any]:
    """`PerToken(k=32)` as `{"name": "per_token", "k": 32}`."""
    for name, kind in _NAMES.items():
        if type(rule) is kind:
            return {"name": name, **asdict(rule)}
    raise ValueError(f"rule_to_json: {rule!r} is not a rule; known: {', '.join(_NAMES)}")


def rule_from_json(record: dict[str, Any]) -> Rule:
    """The inverse of `rule_to_json`.

    Raises:
        ValueError: an unknown name, an unknown or missing field, or a value that the rule does not allow.
    """
    if not isinstance(record, dict) or "name" not in record:
        raise ValueError(f"rule_from_json: expected an object with a name, not {record!r}")
    kind = _NAMES.get(record["name"]) if isinstance(record["name"], str) else None
    if kind is None:
        raise ValueError(f"rule_from_json: unknown rule {record['name']!r}; known: {', '.join(_NAMES)}")
    given = {key: value for key, value in record.items() if key != "name"}
    known = {field.name for field in fields(kind)}
    if unknown := sorted(map(str, given.keys() - known)):
        raise ValueError(f"rule_from_json: {record['name']} has no field {', '.join(unknown)}")
    if missing := sorted(known - given.keys()):
        raise ValueError(f"rule_from_json: {record['name']} lacks the field {', '.join(missing)}")
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"rule_from_json: {error}") from error
