"""How this backend's loops are compiled: by numba, without Python's lock, kept on disk between runs.

numba renews what it kept when the file of a function changes, not when a function of another file that it
calls does. So what is kept lies in a folder that is named after the sources of all of them; where that cannot be
written numba takes its own place in the user's home, or compiles anew in every process.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from numba import config, njit

Compiled = Callable[..., Any]
"""A compiled loop: it takes arrays and numbers, by position."""

_HERE = Path(__file__).parent
_SOURCES = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(_HERE.glob("*.py")))).hexdigest()
_SUMS_MAY_BE_REORDERED = {"reassoc", "contract", "nsz"}
_settings = cast(Any, config)  # its names are made when numba is imported
FOLDER = Path(_settings.CACHE_DIR or _HERE / "__pycache__") / f"loops-{_SOURCES[:16]}"
"""Where compiled loops are kept."""


def loop(function: Callable[..., Any]) -> Compiled:
    """Compile a loop whose results must not depend on how sums are ordered; NaN and inf behave."""
    return _compile(function, False)


def sums(function: Callable[..., Any]) -> Compiled:
    """Compile a loop that may add in any order that the processor likes, the same in every call."""
    return _compile(function, _SUMS_MAY_BE_REORDERED)


def _compile(function: Callable[..., Any], fastmath: bool | set[str]) -> Compiled:
    function = inspect.unwrap(function)  # from checks of annotations that tests may have wrapped around it
    # Python's error model checks every division, and a loop that may raise is not vectorised.
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    users_choice = _settings.CACHE_DIR
    _settings.CACHE_DIR = str(FOLDER)
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # no folder at all
        return njit(function, **options)
    finally:
        _settings.CACHE_DIR = users_choice
