"""`saelab find RUN --positive A --negative B`: which features separate two sets of texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from saelab.cli.options import Common, Result
from saelab.features.find.spec import FindConfig, Pool, Unit


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Find the features that separate two sets of texts, chosen on half of the documents and measured on the rest.

    A set is a file of texts (.txt, .jsonl, .parquet), `re:REGEX`, or `column:NAME=VALUE` over the indexed corpus.
    """

    run: tyro.conf.Positional[Path]
    """A finished run; for `re:` and `column:` with an index that has codes."""
    positive: str
    """The texts that a feature should be active on."""
    negative: str | None = None
    """Those that it should not be active on; for `re:` and `column:` the rest where not given."""
    unit: Unit | None = None
    """What is told apart: documents, lines or tokens (a match's first); lines for a regex, documents otherwise."""
    pool: Pool = "max"
    """A feature's value on a unit: the largest, or the mean, over its kept tokens."""
    limit: int = FindConfig.limit
    """Features that are shown."""
    draws: int = FindConfig.draws
    """Random placements behind the corrected p."""
    seed: int = 0
    """Decides the halves and the placements."""
    column: str = "text"
    """Field of the files that holds the text."""
    name: str = "main"
    """Name of the index."""
    overlay: Path | None = None
    """Overlay folder in which the index was built."""
    out: Path | None = None
    """Write the candidates to this .parquet or .csv file."""
    device: str = "auto"
    """Where the model and the SAE run."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.evaluation.run_list import open_run
    from saelab.features.find.result import require_new
    from saelab.features.find.run import find_features
    from saelab.interrupts import stop_on_signals

    if options.out is not None:
        require_new(options.out, (".parquet", ".csv"), "find")
    config = FindConfig(
        unit=options.unit,
        pool=options.pool,
        limit=options.limit,
        draws=options.draws,
        seed=options.seed,
    )
    with stop_on_signals() as stop:
        found = find_features(
            open_run(options.run),
            options.positive,
            options.negative,
            config,
            index=options.name,
            out=options.overlay,
            column=options.column,
            device=options.device,
            stop=stop,
        )
    if options.out is not None:
        found.write(options.out)
    return Result(found.to_json(), str(found))
