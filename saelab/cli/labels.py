"""`saelab labels import|export RUN FILE`: what features are called, from a file and into one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from saelab.cli.options import Common, Result


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Add the labels of a file to a run's features, or write the run's labels into a new file.

    Read are Neuronpedia's explanation lines (.jsonl, .jsonl.gz), lines with `feature` and `label` (.jsonl, .csv), and
    what `export` writes. Lines that fit no feature are refused one by one; a file of another SAE is refused whole.
    Of several labels of a feature the one with the highest score is shown, of equal ones the newest.
    """

    do: tyro.conf.Positional[Literal["import", "export"]]
    """What to do."""
    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """A finished run."""
    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """The file to read, or a new one."""
    to: Literal["saelab", "neuronpedia"] = "saelab"
    """Format of `export`: every field with the identity of the SAE, or Neuronpedia's explanation lines."""
    model_id: str = ""
    """What Neuronpedia calls the language model."""
    source_id: str = ""
    """What Neuronpedia calls the SAE, for example 6-res-jb."""
    allow_unknown_sae: bool = False
    """Take Neuronpedia's lines, which do not say which SAE they are of in a way that can be checked."""
    out: Path | None = None
    """Keep the labels in this folder instead, by the identity of the SAE: for runs that are read-only."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.evaluation.run_list import open_run

    return (_import if options.do == "import" else _export)(options, open_run(options.run).path)


def _import(options: Options, run: Path) -> Result:
    from saelab.features.labels.exchange import import_labels

    found = import_labels(run, options.file, options.out, allow_unknown_sae=options.allow_unknown_sae)
    data = asdict(found) | {"folder": str(found.folder), "reasons": list(found.reasons)}
    lines = [
        f"{found.folder}: {found.added:,} labels added, {found.unchanged:,} unchanged, {found.refused:,} lines refused",
        *(f"  {reason}" for reason in found.reasons),
    ]
    if found.refused > len(found.reasons):
        lines.append(f"  and {found.refused - len(found.reasons):,} more")
    return Result(data, "\n".join(lines), exit_code=1 if found.refused else 0)


def _export(options: Options, run: Path) -> Result:
    from saelab.features.labels.exchange import export_labels
    from saelab.features.labels.neuronpedia import Source

    source = Source(model_id=options.model_id, source_id=options.source_id)
    n = export_labels(run, options.file, options.to, source, options.out)
    data = {"file": str(options.file), "format": options.to, "n_labels": n}
    return Result(data, f"{options.file}: {n:,} labels")
