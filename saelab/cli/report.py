"""`saelab report RUN --out FILE`: a run as one page that needs no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from saelab.cli.options import Common, Result


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """A run as one HTML file that needs no network: its evaluations, figures of its features, and the clearest ones.

    What the run does not have yet is left out, and the page says how to make it. Nothing is written into the run.
    """

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """A finished run."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """A new file, or an earlier page of saelab, which is replaced."""
    index: str | None = None
    """Name of its feature index; main, where it has one."""
    features: int = 12
    """Cards of features at most."""
    overlay: Path | None = None
    """The folder in which evaluations and indexes of a read-only run were kept, with their --out."""
    force: bool = False
    """Replace a file that is none of ours too."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.api.reporting import report

    out = report(
        options.run,
        out=options.out,
        index=options.index,
        features=options.features,
        overlay=options.overlay,
        force=options.force,
    )
    size = out.stat().st_size
    return Result(
        {"run": str(options.run), "out": str(out), "bytes": size},
        f"{out}: {size / 2**20:.1f} MiB, opens in any browser without a network",
    )
