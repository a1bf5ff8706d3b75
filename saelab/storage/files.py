"""Write a file aside, flush it, rename it: a file with its final name is a whole file.

Every data file of saelab is written by `write_aside` (through one of the functions here), so a
crash at any moment leaves either the old file, or the new one, and perhaps a leftover that ends in
`.writing`, which the next writer of that folder removes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from saelab.errors import DamagedFileError, SaelabError

WRITING_SUFFIX = ".writing"
MAX_JSON_BYTES = 16 * 2**20


def write_aside(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Write a file so that it appears whole or not at all.

    Args:
        path: Final name; its folder is made if it is missing.
        fill: Writes the content into the open binary file that it is given.

    Raises:
        SaelabError: The disk is full, or the folder cannot be written; nothing with the final name
            was changed.
    """
    aside = path.with_name(path.name + WRITING_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise SaelabError(f"cannot write {path}: {_why(error, path)}") from error
    _sync_folder(path.parent)


def move(path: Path, to: Path) -> None:
    """Rename a file, also into another folder of the same file system, so that it lasts.

    Raises:
        SaelabError: The folder cannot be written; the file is where it was.
    """
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, to)
    except OSError as error:
        raise SaelabError(f"cannot move {path} to {to}: {error.strerror}") from error
    _sync_folder(to.parent)
    _sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes as a whole file."""
    write_aside(path, lambda file: _write(file, content))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON with sorted keys, so that equal values give equal bytes."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file that may come from a stranger.

    Raises:
        DamagedFileError: It is missing, too large, not JSON, or nested too deeply.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise DamagedFileError(f"{path} has more than {max_bytes:,} bytes; no JSON file of saelab has")
        return json.loads(content)
    except OSError as error:
        raise DamagedFileError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is not valid JSON: {error}") from error


def append_line(path: Path, value: Any) -> int:
    """Append a value as one JSON line and return the file's size after it.

    Appended files are not atomic by themselves: their readers stop at the last whole line, and a
    resumed run cuts them back to the size that its checkpoint recorded.
    """
    line = (json.dumps(value, sort_keys=True, allow_nan=False) + "\n").encode()
    try:
        with path.open("ab") as file:
            file.write(line)
            return file.tell()
    except OSError as error:
        raise SaelabError(f"cannot write {path}: {_why(error, path)}") from error


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that is never changed in place a second name; copy it where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sync(path: Path) -> None:
    """Wait until an appended file is on the disk.

    Raises:
        SaelabError: The disk is full, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise SaelabError(f"cannot write {path}: {_why(error, path)}") from error


def remove_leftovers(folder: Path, *patterns: str) -> None:
    """Remove what interrupted writers of a folder left; call it while holding the lock of a folder that is ours.

    Args:
        folder: Where to look.
        patterns: Places below it, for example ``hooks/*/*``; the folder itself where none is given.
    """
    for pattern in patterns or ("*",):
        for leftover in folder.glob(pattern + WRITING_SUFFIX):
            if leftover.is_file():
                leftover.unlink(missing_ok=True)


def free_bytes(folder: Path) -> int:
    """Return the free space where a folder is, or will be made."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def require_free_space(
    folder: Path, needed_bytes: int, what: str, advice: str = "free some space or ask for fewer tokens"
) -> None:
    """Refuse work that cannot fit on the disk, before it starts.

    Raises:
        SaelabError: With the needed and the free bytes.
    """
    if needed_bytes > (free := free_bytes(folder)):
        raise SaelabError(
            f"{what} needs {needed_bytes:,} bytes in {folder}, but only {free:,} are free; {advice}"
        )


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(content)


def _why(error: OSError, path: Path) -> str:
    reason = error.strerror or str(error)
    with contextlib.suppress(OSError):
        reason += f" ({shutil.disk_usage(path.parent).free:,} bytes free)"
    return reason


def _sync_folder(folder: Path) -> None:
    # A rename is only durable once its folder is; not every file system lets a folder be opened.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
