"""A stranger's JSON configuration, read value by value and kind by kind; keys that nobody asks for may be there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar

from saelab.errors import DamagedFileError
from saelab.storage.files import read_json

T = TypeVar("T", str, int, bool, float)
_CALLED = {str: "text", int: "a whole number", bool: "true or false", float: "a finite number"}


class Settings:
    """A table of a configuration file.

    Args:
        raw: The table.
        where: The file and the way to the table, for messages.
    """

    def __init__(self, raw: Any, where: str) -> None:
        if not isinstance(raw, dict):
            raise DamagedFileError(f"{where} is not a table of fields")
        self._raw, self.where = raw, where

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read a JSON file.

        Raises:
            DamagedFileError: It is missing, too large, nested too deeply, no JSON, or no table.
        """
        return cls(read_json(path), str(path))

    def __contains__(self, name: str) -> bool:
        return name in self._raw

    def table(self, name: str) -> Settings:
        """Return a table inside this one; an empty one where it is missing."""
        return Settings(self._raw.get(name, {}), f"{self.where}: {name}")

    def optional(self, name: str, kind: type[T]) -> T | None:
        """Return a value; None where it is missing or null.

        Raises:
            DamagedFileError: It is of another kind.
        """
        value = self._raw.get(name)
        if value is None:
            return None
        if not _is_of(value, kind):
            raise DamagedFileError(f"{self.where}: {name} is {value!r}, not {_CALLED[kind]}")
        return kind(value)

    def need(self, name: str, kind: type[T]) -> T:
        """Return a value that must be there.

        Raises:
            DamagedFileError: It is missing, null, or of another kind.
        """
        value = self.optional(name, kind)
        if value is None:
            raise DamagedFileError(f"{self.where} does not say {name}")
        return value

    def count(self, name: str) -> int:
        """Return a whole number of at least 1 that must be there.

        Raises:
            DamagedFileError: It is missing, null, of another kind, or less.
        """
        value = self.need(name, int)
        if not 1 <= value < 2**31:
            raise DamagedFileError(f"{self.where}: {name} is {value}; it must be at least 1")
        return value

    def is_null(self, name: str) -> bool:
        """Whether a key is missing, null, or an empty list or table."""
        return self._raw.get(name) in (None, [], {})

    def raw(self, name: str) -> Any:
        """Return a value of any kind; None where it is missing."""
        return self._raw.get(name)


def _is_of(value: Any, kind: type) -> bool:
    """Whether a value of JSON is of a kind; a whole number is a number too, and no number is infinite."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value)
    return isinstance(value, kind)
