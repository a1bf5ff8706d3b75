"""Where foreign files are: a folder, a file with its configuration beside it, or `hf://owner/name[@revision]/path`.

Of the hub only the list of files is fetched at first, and then the files that a reader asks for, into the hub's
own cache.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn

from saelab.errors import SaelabError, UsageError
from saelab.storage.manifest import digest_of_file

if TYPE_CHECKING:
    from collections.abc import Callable

HUB = "hf://"
_HUB_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?(?:/(.*))?", re.ASCII)
_MAX_FILES, _MAX_DEPTH = 20_000, 4
_CONFIGURATIONS = (".json", ".yaml", ".yml")


class Location:
    """A place that may hold an SAE in some format.

    Args:
        address: How it is called, in messages and in what is recorded.
        names: The files that are there, by their paths below it.
        fetch: From such a name to a local file.
        revision: Commit of a hub repository.
    """

    def __init__(
        self,
        address: str,
        names: frozenset[str],
        fetch: Callable[[str], Path],
        revision: str | None = None,
    ) -> None:
        self.address, self.names, self.revision = address, names, revision
        self._fetch = fetch
        self._read: dict[str, Path] = {}

    def __str__(self) -> str:
        return self.address

    def file(self, name: str) -> Path:
        """Return a file of this machine with the content of a named one.

        Raises:
            SaelabError: The hub does not deliver it.
        """
        if name not in self._read:
            self._read[name] = self._fetch(name)
        return self._read[name]

    def digests(self) -> dict[str, str]:
        """Return the digest of every file that was read."""
        return {name: digest_of_file(path) for name, path in sorted(self._read.items())}

    def below(self, folder: str) -> Location:
        """Return a folder inside this one."""
        start = f"{folder}/"
        return self._inside(
            folder, frozenset(name.removeprefix(start) for name in self.names if name.startswith(start))
        )

    def folders(self) -> dict[str, Location]:
        """Return every folder below that holds a file or a folder with one, in order; each with two levels of names."""
        found: dict[str, set[str]] = {}
        for name in self.names:
            parts = name.split("/")
            for depth in (len(parts) - 1, len(parts) - 2):
                if depth > 0:
                    found.setdefault("/".join(parts[:depth]), set()).add("/".join(parts[depth:]))
        return {folder: self._inside(folder, frozenset(found[folder])) for folder in sorted(found)}

    def _inside(self, folder: str, names: frozenset[str]) -> Location:
        address = f"{self.address.rstrip('/')}/{folder}"
        return Location(address, names, lambda name: self._fetch(f"{folder}/{name}"), self.revision)

    def ending(self, *suffixes: str) -> list[str]:
        """Return the files directly here that end in one of some ways."""
        return sorted(name for name in self.names if "/" not in name and name.endswith(suffixes))


def locate(where: str | Path) -> Location:
    """Look at a place.

    Raises:
        UsageError: There is nothing of that name, or the address cannot be one.
        SaelabError: The hub does not answer.
    """
    if str(where).startswith(HUB):
        return _on_the_hub(str(where))
    path = Path(where).expanduser()
    if path.is_file():
        beside = (
            one.name for one in path.parent.iterdir() if one.suffix in _CONFIGURATIONS and one.is_file()
        )
        names, folder = frozenset([path.name, *beside]), path.parent
    elif path.is_dir():
        names, folder = frozenset(_files_below(path)), path
    else:
        raise UsageError(f"there is no file or folder {where}; an address of the hub begins with {HUB}")
    return Location(str(path.resolve()), names, lambda name: folder / name)


def _files_below(folder: Path, depth: int = _MAX_DEPTH) -> list[str]:
    """Return the files of a folder and of those below it, links to folders left out."""
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink() and depth > 1 and not entry.name.startswith("."):
            found += [f"{entry.name}/{name}" for name in _files_below(entry, depth - 1)]
        elif entry.is_file():
            found.append(entry.name)
        if len(found) > _MAX_FILES:
            raise UsageError(f"{folder} holds more than {_MAX_FILES:,} files; name the folder of one SAE")
    return found


def _on_the_hub(address: str) -> Location:
    match = _HUB_ADDRESS.fullmatch(address.rstrip("/"))
    if match is None or ".." in PurePosixPath(match[3] or "").parts:
        raise UsageError(
            f"{address} is no address of the hub; write {HUB}owner/name/folder, or {HUB}owner/name@revision/..."
        )
    repository, revision, path = match[1], match[2], match[3] or ""
    whole = _repository(repository, revision, address)
    if not path:
        return whole
    if path in whole.names:
        folder, _, file = path.rpartition("/")
        inside = whole.below(folder) if folder else whole
        kept = {
            one for one in inside.names if one == file or ("/" not in one and one.endswith(_CONFIGURATIONS))
        }
        return Location(f"{HUB}{repository}/{path}", frozenset(kept), inside.file, whole.revision)
    inside = whole.below(path)
    if not inside.names:
        raise UsageError(f"{address}: the repository has no {path}; it has {_some(whole)}")
    return inside


def _repository(repository: str, revision: str | None, address: str) -> Location:
    """Return all of a repository; without the hub what its cache on this machine holds of it."""
    import huggingface_hub

    name = f"{HUB}{repository}"
    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision)
    except Exception as error:
        try:
            cached = huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True)
        except Exception:
            _refuse(address, error)
        folder = Path(cached)
        return Location(name, frozenset(_files_below(folder)), lambda file: folder / file, folder.name)
    commit, listed = info.sha, frozenset(one.rfilename for one in info.siblings or [])
    return Location(name, listed, lambda file: _download(repository, file, commit, address), commit)


def _download(repository: str, name: str, commit: str | None, address: str) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=commit))
    except Exception as error:
        _refuse(f"{address}: {name}", error)


def _refuse(address: str, error: Exception) -> NoReturn:
    """Say in one line what the hub's client raised; it has many types, and most have the same remedy."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        raise SaelabError(
            f"{address} is gated: accept the conditions on its page, then run `hf auth login`"
        ) from error
    if isinstance(error, RevisionNotFoundError):
        raise UsageError(f"{address}: the hub has no such revision") from error
    if isinstance(error, RepositoryNotFoundError):
        raise UsageError(
            f"{address}: the hub has no such repository, or none that this machine may read"
        ) from error
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raise SaelabError(
        f"{address}: the hub did not deliver ({lines[0].rstrip(' .:')}); check the network"
    ) from error


def _some(location: Location) -> str:
    folders = list(location.folders()) or sorted(location.names)
    return ", ".join(folders[:8]) + (", ..." if len(folders) > 8 else "") if folders else "nothing"
