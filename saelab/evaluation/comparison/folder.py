"""A comparison on disk.

```
OUT/comparison.csv       one row a run, for people and spreadsheets
    comparison.parquet   the same without loss
    comparison.json      rows, fronts, values at the common L0, and the data of every figure
    page.html            the same on one page
    records/             evaluations that had to be made, an overlay by the SAE's identity
    manifest.json        written last
```
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saelab.errors import DamagedFileError, UsageError
from saelab.evaluation.comparison.compare import RECORDS
from saelab.evaluation.comparison.result import Comparison
from saelab.evaluation.comparison.table import as_csv, as_parquet
from saelab.storage.files import WRITING_SUFFIX, remove_leftovers, write_bytes, write_json
from saelab.storage.lock import LOCK_NAME, locked
from saelab.storage.manifest import MANIFEST_NAME, read_manifest, write_manifest

KIND = "comparison"
CSV, PARQUET, JSON, PAGE = "comparison.csv", "comparison.parquet", "comparison.json", "page.html"
_OURS = {CSV, PARQUET, JSON, PAGE, RECORDS, MANIFEST_NAME, LOCK_NAME}


@contextmanager
def comparison_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for a comparison: a new or an empty one, or one that holds an earlier comparison alone.

    Raises:
        UsageError: Something else lies there; nothing was changed.
        SaelabError: The folder cannot be written or is in use.
    """
    _require_free(folder)
    with locked(folder, "compare"):
        _require_free(folder)
        remove_leftovers(folder)
        yield


def write_comparison(folder: Path, comparison: Comparison, page: str | None = None) -> None:
    """Write a comparison into a folder that `comparison_folder` holds, in place of an earlier one; manifest last.

    Args:
        folder: Where.
        comparison: What was found.
        page: The HTML page, where there is one.
    """
    (folder / MANIFEST_NAME).unlink(missing_ok=True)  # from here on the folder is unfinished
    rows = [run.row for run in comparison.runs]
    write_bytes(folder / CSV, as_csv(rows))
    write_bytes(folder / PARQUET, as_parquet(rows))
    write_json(folder / JSON, comparison.to_json())
    if page is None:
        (folder / PAGE).unlink(missing_ok=True)  # it would be the page of another comparison
    else:
        write_bytes(folder / PAGE, page.encode())
    names = [CSV, PARQUET, JSON, *([] if page is None else [PAGE])]
    content = {
        "runs": [row.run for row in rows],
        "sae_identities": [row.sae_identity for row in rows],
        "tokens_hash": comparison.tokens_hash,
    }
    write_manifest(folder, KIND, names, content)


def _require_free(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file; give another folder with --out")
    with contextlib.suppress(DamagedFileError):  # without a sound manifest the names of the files decide
        if (kind := read_manifest(folder).kind) == KIND:
            return
        raise UsageError(f"{folder} is a folder of kind {kind}, not a comparison; give another with --out")
    others = [
        entry.name
        for entry in sorted(folder.iterdir())
        if entry.name.removesuffix(WRITING_SUFFIX) not in _OURS
    ]
    if others:
        raise UsageError(
            f"{folder} holds {others[0]}, which is no comparison's; give another folder with --out"
        )
