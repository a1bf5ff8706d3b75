"""What every writer is given and hands back, and how an export becomes a folder: whole, and over nothing. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from saelab.errors import UsageError
from saelab.features.export.options import IndexExportOptions

if TYPE_CHECKING:
    from saelab.training.run import Run


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What is written where."""

    run: Run
    """A finished run."""
    out: Path
    """A new or empty folder."""
    index: str = "main"
    """Name of the run's feature index, for formats that are made of one."""
    of_index: IndexExportOptions = field(default_factory=IndexExportOptions)
    """Names in the other tool, for these formats."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    files: tuple[Path, ...]
    """Every file, in the order in which they were written."""
    architecture: str
    """What the other tool calls it."""
    notes: tuple[str, ...] = ()
    """What the other tool will not know, one sentence each."""


def require_new(out: Path) -> None:
    """Refuse a place where something is.

    Raises:
        UsageError: Naming some of it.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        what = (
            "is a file" if out.is_file() else f"holds {', '.join(sorted(p.name for p in out.iterdir())[:3])}"
        )
        raise UsageError(f"{out} {what}; choose a new folder")
