"""What every command has in common: options, their parser, and what a command hands back."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from saelab.cli.plain_types import plain_types
from saelab.errors import UsageError
from saelab.quantities import parse_count

# Without Unicode tyro draws with - + |: rules fill a line, and borders stand apart at its ends.
_BOX = re.compile(r"[╭╮╰╯│─]+|^[\s|+-]*-{3}[\s|+-]*$|^\s*[|+]\s|\s[|+]\s*$")
_HELP = re.compile(r"(Argument helptext|For full helptext)")
OptionsT = TypeVar("OptionsT")


def _read_count(arguments: list[str]) -> int:
    try:
        return parse_count(arguments[0])
    except UsageError as error:
        raise ValueError(str(error)) from error


Count = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="N",
        instance_from_str=_read_count,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""A whole number that may be written ``200k`` or ``100M``."""

OptionalCount = Annotated[
    int | None,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="N",
        instance_from_str=_read_count,
        is_instance=lambda value: value is None or isinstance(value, int),
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    ),
]
"""The same, or None where it is not given."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command."""

    json: bool = False
    """Print one JSON object as the last line of standard output, and nothing else there."""
    debug: bool = False
    """Show the trace of an error instead of one line."""


@dataclass(frozen=True)
class Result:
    """What a command found."""

    data: dict[str, Any]
    """Printed with ``--json``."""
    text: str
    """Printed otherwise."""
    exit_code: int = 0
    """0, or 1 where the finding itself is a failure (damaged files)."""


def parse(kind: type[OptionsT], command: str, arguments: list[str]) -> OptionsT:
    """Read a command's options; help is printed and ends the program.

    Raises:
        UsageError: In one line, naming the option.
        SystemExit: After printing help.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                kind,
                prog=f"saelab {command}",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
                registry=plain_types(),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(f"{_one_line(errors.getvalue())}; see saelab {command} --help") from None


def _one_line(message: str) -> str:
    lines = [_BOX.sub(" ", line).strip() for line in message.splitlines()]
    useful = []
    for line in lines[1:]:  # the first line is the title of the box
        if useful and (not line or _HELP.match(line)):
            break
        if line:
            useful.append(line)
    return " ".join(useful) or "the options cannot be read"
