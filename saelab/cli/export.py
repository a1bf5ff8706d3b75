"""`saelab export RUN --to FORMAT OUT`: a run in another tool's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from saelab.cli.options import Common, Result
from saelab.errors import UsageError
from saelab.features.export.options import IndexExportOptions
from saelab.features.export.registry import INDEX_EXPORTS
from saelab.interop.formats import WRITERS


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Write a run's SAE, or the index of its features, so that another tool reads it; what it cannot hold is refused.

    SAEs: saelens (version 6), sparsify (top-k alone), dictionary-learning. Feature indexes: saedashboard, neuronpedia.
    """

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """A finished run."""
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """A new folder."""
    to: str
    """The format."""
    index: str = "main"
    """Name of the feature index, for formats that are made of one."""
    model_id: str = ""
    """For these: what the other tool calls the model; by default the last part of its name."""
    layer: int | None = None
    """For these: layer of the SAE; by default the number in the name of its hookpoint."""
    sae_set: str = "saelab"
    """For these: name of the set of SAEs that this one belongs to."""


def run(options: Options) -> Result:
    """Run the command."""
    known = [*WRITERS, *INDEX_EXPORTS]
    if options.to not in known:
        raise UsageError(f"the format {options.to!r} cannot be written; known are {', '.join(known)}")
    from saelab.evaluation.run_list import open_run
    from saelab.interop.formats import writer
    from saelab.interop.writing import ExportRequest

    names = IndexExportOptions(model_id=options.model_id, layer=options.layer, sae_set=options.sae_set)
    request = ExportRequest(run=open_run(options.run), out=options.out, index=options.index, of_index=names)
    made = writer(options.to).write(request)
    files = [str(path) for path in made.files]
    data = {
        "run": str(options.run),
        "to": options.to,
        "out": str(options.out),
        "architecture": made.architecture,
        "files": files,
        "notes": list(made.notes),
    }
    lines = [f"{options.out}: {options.to}, {made.architecture}", *(f"  {path}" for path in files)]
    return Result(data, "\n".join([*lines, *(f"  note: {note}" for note in made.notes)]))
