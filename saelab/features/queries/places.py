"""Where an index lies: in a run, beside it in an overlay, or as a folder of its own."""

from __future__ import annotations

from pathlib import Path

from saelab.errors import DamagedFileError, UsageError
from saelab.evaluation.records import check_record_name
from saelab.features.schema import INDEXES
from saelab.sae.files import sae_identity
from saelab.storage.manifest import MANIFEST_NAME, read_manifest
from saelab.training.run import SAE


def find_index(path: Path, name: str, out: Path | None) -> tuple[Path, Path | None]:
    """Return the folder of an index, and of the run whose SAE it is of where that is known.

    Args:
        path: A run, the SAE's folder within it, or an index.
        name: Name of the index within the run.
        out: An overlay, in which indexes lie by the identity of the SAE.

    Raises:
        UsageError: There is none, or the name is no name.
        DamagedFileError: The folder is something else, or a link leads out of the run.
    """
    check_record_name(name)
    kind = read_manifest(path).kind
    if kind == "index":
        return path, run_of_index(path)
    if kind not in ("run", "sae"):
        raise UsageError(f"{path} holds a {kind}; give a run, or an index of one")
    run = path if kind == "run" else path.absolute().parent
    base = run if out is None else out / sae_identity(run / SAE)
    place = base / INDEXES / name
    if not (place / MANIFEST_NAME).exists():
        there = sorted(found.parent.name for found in (base / INDEXES).glob(f"[!.]*/{MANIFEST_NAME}"))
        others = f"; there are {', '.join(there)}" if there else ""
        with_out = "" if out is None else f" --out {out}"
        with_name = "" if name == "main" else f" --name {name}"
        raise UsageError(
            f"{run} has no index {name!r}{others}; build it with: saelab index {run}{with_name}{with_out}"
        )
    if not place.resolve().is_relative_to(base.resolve()):
        raise DamagedFileError(f"{place} leads out of {base}; open that folder itself if you trust it")
    return place, run


def run_of_index(path: Path) -> Path | None:
    """Return the run in whose folder an index lies, if it does."""
    parent = path.absolute().parent
    run = parent.parent
    return run if parent.name == INDEXES and (run / SAE / MANIFEST_NAME).exists() else None


def require_same_sae(path: Path, identity: str, run: Path) -> None:
    """Refuse an index whose SAE is not the run's.

    Raises:
        UsageError: It is of another SAE.
    """
    if (found := sae_identity(run / SAE)) != identity:
        raise UsageError(
            f"{path}: this index is of another SAE ({identity}) than {run / SAE} ({found}); build it again with: "
            f"saelab index {run}"
        )
