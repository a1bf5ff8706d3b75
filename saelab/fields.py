"""Read configuration from JSON strictly, every field present and of its type, and compare two. Imports no torch."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from saelab.errors import SaelabError

T = TypeVar("T")
Readers = dict[str, Callable[[Any], Any]]


def read_fields(
    kind: type[T], raw: Any, where: str, error: type[SaelabError], readers: Readers | None = None
) -> T:
    """Build a dataclass from JSON values.

    Args:
        kind: Dataclass of numbers, text, booleans, tuples of them, literals, and further dataclasses.
        raw: What was read from JSON.
        where: Name of the place for messages, for example the file.
        error: What to raise.
        readers: For fields that this function cannot read: from the JSON value to the field's value.

    Raises:
        SaelabError: Of the kind ``error``, naming the missing, unknown or mistyped field.
    """
    readers = readers or {}
    if not isinstance(raw, dict):
        raise error(f"{where} is not a table of fields")
    expected = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType] - any dataclass
    if missing := [name for name in expected if name not in raw]:
        raise error(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(str(name) for name in raw if name not in expected):
        raise error(f"{where} has unknown fields: {', '.join(unknown)}; known: {', '.join(expected)}")
    hints = get_type_hints(kind) if not readers else _hints_without(kind, readers)
    values = {
        name: readers[name](raw[name])
        if name in readers
        else _read(hints[name], raw[name], where, name, error)
        for name in expected
    }
    return kind(**values)


def _hints_without(kind: type, readers: Readers) -> dict[str, Any]:
    """Resolve annotations, standing in for those that only a reader understands (and may not be imported)."""
    names = {field.type: object for field in fields(kind) if field.name in readers}
    return get_type_hints(kind, localns={name: object for name in names if isinstance(name, str)})


def _read(hint: Any, value: Any, where: str, name: str, error: type[SaelabError]) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        hint = next(part for part in arguments if part is not type(None))
        return _read(hint, value, where, name, error)
    if origin is Literal:
        if value in arguments:
            return value
        raise error(f"{where}: {name} is {value!r}; choose one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_read(arguments[0], item, where, name, error) for item in value)
        raise error(f"{where}: {name} is {value!r}, not a list")
    if origin is dict:
        if isinstance(value, dict):
            return value
        raise error(f"{where}: {name} is {value!r}, not a table")
    if isinstance(hint, type) and is_dataclass(hint):
        return read_fields(hint, value, f"{where}: {name}", error)
    return _read_scalar(hint, value, f"{where}: {name}", error)


def _read_scalar(hint: type, value: Any, where: str, error: type[SaelabError]) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number and abs(value) < 1e300 and math.isfinite(value):
        return float(value)
    if hint is int and is_number and isinstance(value, int) and abs(value) < 2**63:
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    wanted = {float: "a finite number", int: "a whole number", str: "text", bool: "true or false"}[hint]
    raise error(f"{where} is {value!r}, not {wanted}")


def differences(found: Any, wanted: Any, key: str = "") -> list[str]:
    """Return one line for each key in which two JSON values differ, nested keys joined by dots."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = sorted({*found, *wanted})
        parts = (differences(found.get(n), wanted.get(n), f"{key}.{n}".lstrip(".")) for n in names)
        return [line for part in parts for line in part]
    return [] if found == wanted else [f"{key}: {json.dumps(found)} there, {json.dumps(wanted)} now"]
