"""Values that are kept beside documents: one kind for each column, so that they fit a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saelab.errors import UsageError
from saelab.text.documents import ColumnValue


def uniform_columns(columns: Mapping[str, Sequence[ColumnValue]]) -> dict[str, tuple[ColumnValue, ...]]:
    """Return the columns with whole numbers turned into floats where both stand in one.

    Raises:
        UsageError: A column mixes text, numbers and truth values, or no document has a value in it.
    """
    return {name: _uniform(name, values) for name, values in columns.items()}


def _uniform(name: str, values: Sequence[ColumnValue]) -> tuple[ColumnValue, ...]:
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        raise UsageError(
            f"text: none of the {len(values):,} documents has a value in the kept column {name!r}; look at its spelling"
        )
    if kinds == {int, float}:
        return tuple(value if value is None else float(value) for value in values)
    if len(kinds) > 1:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UsageError(
            f"text: the kept column {name!r} holds values of several kinds ({found}); make them one"
        )
    return tuple(values)
