"""Who may write into a folder: advisory locks that the operating system releases when their holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from saelab.errors import SaelabError

LOCK_NAME = ".lock"


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold the folder's lock alone for the time of the block.

    Args:
        folder: Made if it is missing.
        doing: What the caller is about to do, for the message.

    A folder that was made for the lock, and in which nothing was begun, is gone again after an error.

    Raises:
        SaelabError: Another process holds it, or the folder cannot be written.
    """
    is_new = not folder.exists()
    with FolderLock(folder, doing) as lock:
        if not lock.try_alone():
            raise lock.in_use()
        try:
            yield
        except BaseException:
            if is_new and [entry.name for entry in folder.iterdir()] == [LOCK_NAME]:
                (folder / LOCK_NAME).unlink()
                folder.rmdir()
            raise


class FolderLock:
    """The lock of a folder: held alone, or together by processes that share one kind of work.

    Nothing here waits. A change from alone to together, or back, lets go for a moment: what was true
    before it must be looked at again. The lock's file stays in the folder; only `locked` removes it, with
    a folder of its own in which nothing was begun, and a lock on a file that was removed is not believed.

    Args:
        folder: Made if it is missing.
        doing: The kind of work. Whoever asks for another kind is refused instead of told to wait.

    Raises:
        SaelabError: The folder cannot be written, its file system has no locks, or somebody is at
            other work in it.
    """

    def __init__(self, folder: Path, doing: str) -> None:
        self.folder, self.doing = folder, doing
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered: nothing is left to be written, and to fail, when it is closed.
            self._file: IO[bytes] = (folder / LOCK_NAME).open("a+b", buffering=0)
        except OSError as error:
            raise SaelabError(f"{doing}: cannot write to {folder}: {error.strerror}") from error

    def try_alone(self) -> bool:
        """Take the lock for this process alone; False where others do the same work at the moment."""
        if not self._try(fcntl.LOCK_EX):
            return False
        try:
            self._file.truncate(0)
            self._file.write(self.doing.encode())
        except OSError as error:
            raise SaelabError(f"{self.doing}: cannot write to {self.folder}: {error.strerror}") from error
        return True

    def try_together(self) -> bool:
        """Share the lock; False where another process does the same work alone at the moment."""
        return self._try(fcntl.LOCK_SH)

    def release(self) -> None:
        """Let go, so that others can have the lock alone."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def in_use(self) -> SaelabError:
        """Return the error for a folder that somebody else holds."""
        return SaelabError(
            f"{self.doing}: {self.folder} is in use by another process; wait for it or choose another folder"
        )

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()  # a process that was forked meanwhile has the file open too
        self._file.close()

    def _try(self, kind: int) -> bool:
        if _try_lock(self._file, kind, self.folder):
            # Removed by its last holder after we opened it: a lock that others do not see.
            if not _is_same_file(self._file, self.folder / LOCK_NAME):
                raise self.in_use()
            return True
        self._file.seek(0)
        # Empty while its holder is just about to write it.
        if self._file.read() not in (b"", self.doing.encode()):
            raise self.in_use()
        return False


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold a lock file of its own for the time of the block, if nobody else holds it; tells whether it is held.

    Raises:
        SaelabError: The file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise SaelabError(f"cannot write {path}: {error.strerror}") from error
    with file:
        yield _try_lock(file, fcntl.LOCK_EX, path)


def _is_same_file(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(file: IO[bytes], kind: int, path: Path) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise SaelabError(
            f"cannot lock {path}: {error.strerror}; use a file system that has locks"
        ) from error
    return True
