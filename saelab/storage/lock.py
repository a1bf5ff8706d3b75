"""One writer a folder: an advisory lock that the operating system releases when its holder dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saelab.errors import SaelabError

LOCK_NAME = ".lock"


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold the folder's lock for the time of the block.

    Args:
        folder: Made if it is missing.
        doing: What the caller is about to do, for the message.

    Raises:
        SaelabError: Another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_NAME).open("a")
    except OSError as error:
        raise SaelabError(f"{doing}: cannot write to {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SaelabError(
                f"{doing}: {folder} is in use by another process; wait for it or choose another folder"
            ) from error
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
