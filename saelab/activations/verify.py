"""Check every file of a store against its manifest."""

from __future__ import annotations

from pathlib import Path

from saelab.activations.store import Store
from saelab.errors import DamagedFileError
from saelab.storage.manifest import check_file


def verify_store(path: Path | str) -> list[str]:
    """Compare sizes and checksums of all files; an empty list means a sound store.

    Raises:
        DamagedFileError: There is no readable manifest to compare with.
    """
    with Store.open(path) as store:
        problems = []
        for name in store.manifest.files:
            try:
                check_file(store.path, name, store.manifest)
            except DamagedFileError as error:
                problems.append(str(error))
        return problems
