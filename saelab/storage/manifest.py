"""The manifest of a folder: written last, it says what is there, how large, and with which checksum."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from saelab.errors import DamagedFileError
from saelab.storage.files import read_json, write_json

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
_DIGEST = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished folder holds."""

    kind: str
    """What the folder is: ``store``, ``sae``, ``run``, ``evaluations`` or ``checkpoint``."""
    content: dict[str, Any] = field(default_factory=dict)
    """Facts about the content; each kind defines its own."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Relative name of each file, with ``bytes`` and ``blake2b``."""
    version: int = FORMAT_VERSION
    """Version of the format that wrote it."""


def digest_of(content: bytes) -> str:
    """Return the checksum used everywhere: 128-bit blake2b in hexadecimal."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the checksum of a file's content, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
    except OSError as error:
        raise DamagedFileError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def describe_file(folder: Path, name: str) -> dict[str, Any]:
    """Return a file's entry as manifests have it: ``bytes`` and ``blake2b``."""
    return {"bytes": (folder / name).stat().st_size, "blake2b": digest_of_file(folder / name)}


def write_manifest(
    folder: Path,
    kind: str,
    names: list[str],
    content: dict[str, Any],
    known: dict[str, dict[str, Any]] | None = None,
) -> Manifest:
    """Describe the named files of a folder and write its manifest: from now on the folder is complete.

    Args:
        folder: The folder.
        kind: What it is.
        names: Files that are described as they are now.
        content: Facts about the content.
        known: Entries of an earlier manifest that stand as they are, so that damage since then stays visible.
    """
    files = (known or {}) | {name: describe_file(folder, name) for name in names}
    body = {"format": f"saelab-{kind}", "version": FORMAT_VERSION, "content": content, "files": files}
    write_json(folder / MANIFEST_NAME, body | {"blake2b": digest_of_body(body)})
    return Manifest(kind=kind, content=content, files=files)


def digest_of_body(body: dict[str, Any]) -> str:
    """Return the checksum of a manifest without its own ``blake2b`` entry."""
    return digest_of(json.dumps(body, sort_keys=True).encode())


def read_manifest(folder: Path, kind: str | None = None) -> Manifest:
    """Read and check a folder's manifest (not yet the files that it lists).

    Raises:
        DamagedFileError: There is none, it is not of the kind asked for, it was written by a newer
            version, or a file name in it points outside the folder.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        raise DamagedFileError(
            f"{folder} has no {MANIFEST_NAME}: it is not a saelab folder, or it was never finished"
        )
    raw = read_json(path)
    if not isinstance(raw, dict) or not str(raw.get("format", "")).startswith("saelab-"):
        raise DamagedFileError(f"{path} is not a saelab manifest")
    found = raw["format"].removeprefix("saelab-")
    if kind is not None and found != kind:
        raise DamagedFileError(f"{folder} holds a {found}, not a {kind}")
    version = raw.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DamagedFileError(f"{path}: version is {version!r}, not a positive whole number")
    if version > FORMAT_VERSION:
        raise DamagedFileError(
            f"{path} has format version {version}; this saelab reads up to {FORMAT_VERSION}: install a newer one"
        )
    if digest_of_body({key: value for key, value in raw.items() if key != "blake2b"}) != raw.get("blake2b"):
        raise DamagedFileError(f"{path} is damaged: it does not have its own checksum")
    files, content = raw.get("files"), raw.get("content")
    if not isinstance(files, dict) or not isinstance(content, dict):
        raise DamagedFileError(f"{path} lacks its list of files or its content")
    for name, facts in files.items():
        _check_entry(path, name, facts)
    return Manifest(kind=found, content=content, files=files, version=version)


def check_file(folder: Path, name: str, manifest: Manifest, *, content: bool = True) -> None:
    """Compare one file with the manifest.

    Raises:
        DamagedFileError: Naming the file, what was expected and what was found.
    """
    if name not in manifest.files:
        raise DamagedFileError(f"{folder / MANIFEST_NAME} does not list {name}")
    facts = manifest.files[name]
    try:
        path = resolve_inside(folder, name)
        if not path.is_file():
            raise DamagedFileError(f"{path} is missing")
        size = path.stat().st_size
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, a loop of links
        raise DamagedFileError(f"{folder}: cannot look at {name!r}: {error}") from error
    if size != facts["bytes"]:
        raise DamagedFileError(f"{path} has {size:,} bytes, its manifest says {facts['bytes']:,}")
    if content and (found := digest_of_file(path)) != facts["blake2b"]:
        raise DamagedFileError(f"{path} is damaged: checksum {found}, its manifest says {facts['blake2b']}")


def resolve_inside(folder: Path, name: str) -> Path:
    """Return the path of a listed file, refusing any that leads outside the folder, also by a link."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DamagedFileError(f"{folder / MANIFEST_NAME} names {name!r}, which leads outside the folder")
    return path


def _check_entry(path: Path, name: str, facts: Any) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in name or "\0" in name:
        raise DamagedFileError(f"{path} names {name!r}, which leads outside the folder")
    good = (
        isinstance(facts, dict)
        and isinstance(facts.get("bytes"), int)
        and not isinstance(facts["bytes"], bool)
        and 0 <= facts["bytes"] < math.inf
        and isinstance(facts.get("blake2b"), str)
        and _DIGEST.fullmatch(facts["blake2b"])
    )
    if not good:
        raise DamagedFileError(f"{path}: the entry of {name!r} has no size and checksum")
