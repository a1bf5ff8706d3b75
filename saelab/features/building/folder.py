"""Where an index is built, and how it takes its place.

```
RUN/indexes/NAME/             the finished index
RUN/indexes/.building-NAME/   while it is built: request.json first, manifest.json last
RUN/indexes/.old-NAME/        for the moment of the swap
```

Everything is written in the building folder. When its manifest stands there, the folder is renamed to its place;
whoever had the old index open is told so at the next question. A crash at any moment leaves the old index or the new
one, and the same command finishes what is left.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from saelab.errors import UsageError
from saelab.storage.files import read_json, remove_leftovers, write_json
from saelab.storage.manifest import MANIFEST_NAME

REQUEST = "request.json"
WORK = "work"


class IndexFolder:
    """The folders of one index.

    Args:
        place: Where the finished index goes.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.building = place.with_name(f".building-{place.name}")
        self._old = place.with_name(f".old-{place.name}")

    @property
    def work(self) -> Path:
        """What is needed while building and gone at the end."""
        return self.building / WORK

    def recover(self) -> None:
        """Finish a swap that was interrupted."""
        if (self.building / MANIFEST_NAME).exists():
            self._swap()
        elif not self.place.exists() and self._old.exists():
            self._old.rename(self.place)
        shutil.rmtree(self._old, ignore_errors=True)

    def begin(self, request: dict[str, Any]) -> None:
        """Begin or go on with what the request describes.

        Raises:
            UsageError: Another unfinished index is there.
        """
        found = self.building / REQUEST
        if found.exists() and (differences := different(read_json(found), request)):
            raise UsageError(
                f"index: an unfinished index in {self.building} was begun with other settings "
                f"({', '.join(differences)}); finish it with them, or remove that folder"
            )
        if not found.exists():
            shutil.rmtree(self.building, ignore_errors=True)  # nothing that is believed was written yet
            write_json(found, request)
        remove_leftovers(self.building, "*", "codes/*", f"{WORK}/*", f"{WORK}/*/*")

    def finish(self) -> None:
        """Put the finished index in its place."""
        shutil.rmtree(self.work, ignore_errors=True)
        self._swap()

    def _swap(self) -> None:
        shutil.rmtree(self._old, ignore_errors=True)
        if self.place.exists():
            self.place.rename(self._old)
        self.building.rename(self.place)
        shutil.rmtree(self._old, ignore_errors=True)


def different(found: Any, wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the names of the entries in which two descriptions differ, with both values where they are short."""
    if not isinstance(found, dict):
        return [prefix.rstrip(".") or "everything"]
    names = []
    for key in sorted(found.keys() | wanted.keys()):
        a, b = found.get(key), wanted.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            names += different(a, b, f"{prefix}{key}.")
        else:
            shown = f" {a!r} there, {b!r} now" if len(repr((a, b))) < 100 else ""
            names.append(f"{prefix}{key}{shown}")
    return names
