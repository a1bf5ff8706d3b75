"""How values of options are shown in help: STR, PATH, N or NUMBER, whether or not they may be left out."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo


def plain_types() -> ConstructorRegistry:
    """Return rules for texts, paths and numbers, for tuples of them, and for those that may be None."""
    registry = ConstructorRegistry()
    registry.primitive_rule(_rule)
    return registry


def _rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    kind, origin, arguments = info.type, get_origin(info.type), get_args(info.type)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis and arguments[0] in _KINDS:
        return _several(arguments[0])
    if origin in (Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        kind = next(part for part in arguments if part is not type(None))
    if get_origin(kind) is Literal and kind is not info.type:
        return _choice(get_args(kind))
    return _one(kind) if kind in _KINDS else None


def _one(kind: type) -> PrimitiveConstructorSpec:
    metavar, read = _KINDS[kind]
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda texts: read(texts[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    )


def _several(kind: type) -> PrimitiveConstructorSpec:
    metavar, read = _KINDS[kind]
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[{metavar} ...]",
        instance_from_str=lambda texts: tuple(map(read, texts)),
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(part, kind) for part in value),
        str_from_instance=lambda values: list(map(str, values)) or ["none"],
    )


def _choice(choices: tuple[str, ...]) -> PrimitiveConstructorSpec:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(choices)}}}",
        choices=choices,
        instance_from_str=lambda texts: texts[0],
        is_instance=lambda value: value is None or value in choices,
        str_from_instance=lambda value: ["none" if value is None else value],
    )


def _number(read: Callable[[str], Any], called: str) -> Callable[[str], Any]:
    def read_number(text: str) -> Any:
        try:
            return read(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {called}") from None

    return read_number


_KINDS: dict[type, tuple[str, Callable[[str], Any]]] = {
    str: ("STR", str),
    Path: ("PATH", Path),
    int: ("N", _number(int, "a whole number")),
    float: ("NUMBER", _number(float, "a number")),
}
