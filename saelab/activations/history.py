"""Which stores a store was before it was extended, so that what was made from them can say so."""

from __future__ import annotations

from pathlib import Path

from saelab.activations.layout import HISTORY
from saelab.errors import DamagedFileError
from saelab.storage.files import read_json, write_json

_KEY = "extended_from"


def earlier_identities(folder: Path) -> tuple[str, ...]:
    """Return the identities that a store had, oldest first; none where nothing sound is written there."""
    try:
        raw = read_json(folder / HISTORY)
    except DamagedFileError:
        return ()
    found = raw.get(_KEY) if isinstance(raw, dict) else None
    return tuple(text for text in found if isinstance(text, str)) if isinstance(found, list) else ()


def remember_identity(folder: Path, identity: str) -> None:
    """Write down the identity of a store that is about to be extended."""
    known = earlier_identities(folder)
    if identity not in known:
        write_json(folder / HISTORY, {_KEY: [*known, identity]})
