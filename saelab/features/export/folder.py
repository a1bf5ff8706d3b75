"""An export's folder: written beside its place, then renamed; whole or absent, and over nothing."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from saelab.errors import UsageError
from saelab.storage.files import move, write_aside
from saelab.storage.lock import LOCK_NAME, locked


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which takes its place at the end; after an error nothing is left.

    Args:
        out: Where nothing is, or an empty folder.

    Raises:
        UsageError: Something is there.
        SaelabError: It cannot be written, or another process writes it.
    """
    require_new(out)
    aside = out.with_name(f".writing-{out.name}")
    with locked(aside, "export"):
        _clear(aside)  # what a killed export left
        try:
            yield aside
            require_new(out)
            move(aside, out)
        except BaseException:
            _clear(aside)
            raise
    (out / LOCK_NAME).unlink(missing_ok=True)


def require_new(out: Path) -> None:
    """Refuse a place where something is.

    Raises:
        UsageError: It is a file, or a folder that is not empty.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UsageError(f"export: {out} is there already; choose a new folder")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, packed where the name ends in .gz; equal rows give equal bytes."""

    def fill(file: BinaryIO) -> None:
        encoded = (json.dumps(row, allow_nan=False).encode() + b"\n" for row in rows)
        if path.suffix != ".gz":
            file.writelines(encoded)
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=5, mtime=0) as packed:
            packed.writelines(encoded)

    write_aside(path, fill)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir() if folder.exists() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK_NAME:
            entry.unlink()
