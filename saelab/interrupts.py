"""Stop when asked: the first Ctrl-C or SIGTERM asks the work to save and end, the second ends it at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """Whether somebody asked the running work to stop, or its time is over.

    Args:
        seconds: Time after which a stop is asked for by itself; None for no limit.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._asked = False
        self._deadline = None if seconds is None else time.monotonic() + seconds

    @property
    def requested(self) -> bool:
        """Whether to stop at the next safe moment."""
        return self._asked or (self._deadline is not None and time.monotonic() >= self._deadline)

    def ask(self) -> None:
        """Ask for a stop at the next safe moment."""
        self._asked = True


@contextmanager
def stop_on_signals(seconds: float | None = None) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM within the block into a request, and the second into KeyboardInterrupt.

    Off the main thread signals cannot be handled, and the request is only ever set by its `ask` or
    by the time limit.

    Args:
        seconds: Time after which a stop is asked for by itself; None for no limit.
    """
    stop = StopRequest(seconds)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    asked: list[int] = []

    def handle(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        stop.ask()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
