"""Stop when asked: the first Ctrl-C or SIGTERM asks the work to save and end, the second ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """Whether somebody asked the running work to stop."""

    def __init__(self) -> None:
        self.requested = False

    def ask(self) -> None:
        """Ask for a stop at the next safe moment."""
        self.requested = True


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM within the block into a request, and the second into KeyboardInterrupt.

    Off the main thread signals cannot be handled, and the request is only ever set by its `ask`.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.ask()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
