"""Numbers as people write them: ``200k``, ``100M``, ``x8``. Imports no torch."""

from __future__ import annotations

import re

from saelab.errors import UsageError

_SUFFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
_NUMBER = re.compile(r"([0-9][0-9_,]*(?:\.[0-9]+)?)([kKMGB]?)")


def parse_count(text: str | int) -> int:
    """Read a positive whole number such as ``4096``, ``200k`` or ``1.5M``.

    Raises:
        UsageError: It is not one.
    """
    match = _NUMBER.fullmatch(str(text).strip())
    if match:
        value = float(match.group(1).replace(",", "").replace("_", "")) * _SUFFIXES[match.group(2)]
        if value == int(value) and value > 0:
            return int(value)
    raise UsageError(f"{text!r} is not a positive whole number; write for example 4096, 200k or 1.5M")


def parse_width(text: str | int, d_in: int) -> int:
    """Read a dictionary width: a number, or ``x8`` for 8 times ``d_in``.

    Raises:
        UsageError: It is neither.
    """
    times = isinstance(text, str) and text.startswith("x")
    try:
        return parse_count(text[1:]) * d_in if times else parse_count(text)  # pyright: ignore[reportIndexIssue]
    except UsageError as error:
        raise UsageError(
            f"width {text!r} is not a positive whole number; write for example 4096, 16k, or x8 for 8 times d_in"
        ) from error


def parse_duration(text: str) -> float:
    """Read a time such as ``90s``, ``30m``, ``2.5h`` or ``1h30m``, in seconds.

    Raises:
        UsageError: It is not one.
    """
    match = _DURATION.fullmatch(text.strip())
    if match and any(match.groups()):
        seconds = sum(
            float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True)
        )
        if seconds > 0:
            return seconds
    raise UsageError(f"{text!r} is not a time; write for example 90s, 30m, 2.5h or 1h30m")


def format_bytes(count: float) -> str:
    """Write a number of bytes for people, for example ``1.4 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
