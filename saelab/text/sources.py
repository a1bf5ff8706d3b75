"""Names of text sources: which are built in, and the paths of local ones, spelled in one way from everywhere."""

from __future__ import annotations

import glob
from pathlib import Path

from saelab.storage.places import whole_path, whole_pattern

STDLIB_SOURCES = ("stdlib", "stdlib-with-tests")


def is_local_file(source: str) -> bool:
    """Whether a source names one file that is there."""
    return source not in STDLIB_SOURCES and Path(source).expanduser().is_file()


def whole_source(source: str) -> str:
    """Return a source with absolute paths where it names files or folders of this machine.

    Built-in texts, hub names, and whatever is not there stay as they are.
    """
    if source in STDLIB_SOURCES:
        return source
    if "," in source and not Path(source).expanduser().exists():
        parts = [_whole(part.strip()) for part in source.split(",")]
        # A list cannot be told apart from a comma in the name of a folder above: then it stays as typed.
        return source if any("," in part for part in parts) else ",".join(parts)
    return _whole(source)


def _whole(source: str) -> str:
    if Path(source).expanduser().exists():
        return whole_path(source) if source else source
    return whole_pattern(source) if glob.has_magic(source) else source
