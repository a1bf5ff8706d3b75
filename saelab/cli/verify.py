"""`saelab verify PATH`: compare files with their checksums."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from saelab.cli.options import Common, Result
from saelab.quantities import format_bytes


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Compare every file of a store or run with the checksum in its manifest."""

    path: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="PATH")]]
    """A store, a run, or a folder of them."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.storage.inspect import verify_folder

    found = verify_folder(options.path)
    if found.problems:
        text = "\n".join(
            [*found.problems, f"{len(found.problems)} of {found.files} files are not as they should be"]
        )
    else:
        text = f"{options.path}: {found.files} files, {format_bytes(found.n_bytes)}, all as they should be"
    return Result({"path": str(options.path)} | asdict(found), text, exit_code=1 if found.problems else 0)
