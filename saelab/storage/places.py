"""Names of places on this machine: their whole path, and what to say where there is nothing of that name."""

from __future__ import annotations

import difflib
import glob
from pathlib import Path

_SHOWN = 8


def whole_path(name: str) -> str:
    """Return the absolute path of a file or folder, which means the same from every folder.

    The last part stays as it is also where it is a link: files and folders are known by their names.
    """
    path = Path(name).expanduser()
    if path.name in ("", ".."):
        return str(path.resolve())
    return str(path.parent.resolve() / path.name)


def whole_pattern(pattern: str) -> str:
    """Return a glob with an absolute path before its first wildcard."""
    parts = Path(pattern).expanduser().parts
    first = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    # A folder above may hold a bracket in its name.
    return str(Path(glob.escape(str(Path(*parts[:first]).resolve())), *parts[first:]))


def why_not_there(name: str, what: str) -> str | None:
    """Say in one line that a name of this machine is not there; None where it may be one of the hub.

    A name is of this machine if it is written as a path (``/``, ``./``, ``../`` or ``~`` in front),
    or if its first part is a folder here.

    Args:
        name: Where nothing is that could be read.
        what: What it should be, for example ``model folder``.
    """
    path = Path(name).expanduser()
    is_path = path.is_absolute() or name.startswith((".", "~"))
    if not is_path and not (len(path.parts) > 1 and Path(path.parts[0]).is_dir()):
        return None
    shown = f"there is no {what} {name}{' any more, or there never was one' if path.is_absolute() else ''}"
    if not is_path:
        shown += f" ({path.parts[0]} is a folder here, so the hub is not asked)"
    return shown + _what_is_near(path)


def _what_is_near(path: Path) -> str:
    """Offer names in the deepest folder that is there."""
    missing, parent = path.name, path.parent
    while not parent.is_dir() and parent != parent.parent:
        missing, parent = parent.name, parent.parent
    try:
        there = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        return ""
    near = difflib.get_close_matches(missing, there, n=3)
    if near:
        return f"; did you mean {' or '.join(str(parent / name) for name in near)}?"
    if not there or path.is_absolute():
        return ""
    more = ", ..." if len(there) > _SHOWN else ""
    return f"; {parent} holds {', '.join(there[:_SHOWN])}{more}"
