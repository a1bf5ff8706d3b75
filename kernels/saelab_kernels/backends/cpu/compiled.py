"""How this backend's loops are compiled: by numba, without Python's lock, kept on disk between runs.

numba renews what it kept when the file of a function changes, not when a function of another file that it
calls does. So loops that call each other live in one file.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])

_SUMS_MAY_BE_REORDERED = {"reassoc", "contract", "nsz"}


def loop(function: F) -> F:
    """Compile a loop whose results must not depend on how sums are ordered; NaN and inf behave."""
    return _compile(function, False)


def sums(function: F) -> F:
    """Compile a loop that may add in any order that the processor likes, the same in every call."""
    return _compile(function, _SUMS_MAY_BE_REORDERED)


def _compile(function: F, fastmath: bool | set[str]) -> F:
    function = inspect.unwrap(function)  # from checks of annotations that tests may have wrapped around it
    with contextlib.suppress(RuntimeError):  # no folder to keep it in: compiled anew in every process
        return njit(function, nogil=True, cache=True, fastmath=fastmath, error_model="numpy")
    return njit(function, nogil=True, fastmath=fastmath, error_model="numpy")
