"""The identity of a store, and which it had before it was extended, so that what was made from it can say so."""

from __future__ import annotations

import json
from pathlib import Path

from saelab.activations.layout import CONFIG, HISTORY
from saelab.errors import DamagedFileError
from saelab.storage.files import read_json, write_json
from saelab.storage.manifest import Manifest, digest_of

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


def identity_of(manifest: Manifest) -> str:
    """Return the digest of a store's facts and of the checksums of its data files.

    How it was made (`config.json`) and where model and text lay is left out.
    """
    files = {name: facts for name, facts in manifest.files.items() if name != CONFIG}
    content = {key: value for key, value in manifest.content.items() if key != "model_spec"}
    provenance = content.get("provenance")
    if isinstance(provenance, dict) and isinstance(provenance.get("text"), dict):
        content["provenance"] = provenance | {"text": provenance["text"].get("hash")}
    return digest_of(json.dumps([content, files], sort_keys=True).encode())
