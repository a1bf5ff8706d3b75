"""Silence for the time of a block: transformers reports to standard error what saelab says in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' progress bars and warnings inside the block, and restore its settings after it."""
    from transformers.utils import logging as settings

    had_bars, level = settings.is_progress_bar_enabled(), settings.get_verbosity()
    settings.disable_progress_bar()
    settings.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        settings.set_verbosity(level)
        if had_bars:
            settings.enable_progress_bar()
