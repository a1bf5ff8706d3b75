"""`saelab encode RUN TEXT --out FILE.parquet`: apply an SAE to a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from saelab.cli.options import Common, Count, Result
from saelab.cli.text_options import TextOptions


@dataclass(frozen=True, kw_only=True)
class Options(TextOptions, Common):
    """Write what an SAE gives on a text as Parquet: a row a token with all its active features, or with chosen ones."""

    run: tyro.conf.Positional[Path]
    """A finished run; its own model reads the text."""
    text: tyro.conf.Positional[str]
    """`stdlib`, .txt, .jsonl or .parquet files, or a data set of the hub."""
    out: Path
    """The .parquet file to write; it must not be there."""
    tokens: Count = 0
    """Kept tokens to encode at most; 0 for all."""
    features: tuple[int, ...] = ()
    """Write these features as columns instead of lists of all."""
    above: float | None = None
    """Write a row for each document in which one of the features exceeds this."""
    device: str = "auto"
    """Where the model and the SAE run."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.evaluation.run_list import open_run
    from saelab.features.encode.table import encode_text
    from saelab.interrupts import stop_on_signals

    with stop_on_signals() as stop:
        n_rows = encode_text(
            open_run(options.run),
            options.text_spec(options.text),
            options.out,
            features=options.features,
            above=options.above,
            tokens=options.tokens,
            device=options.device,
            stop=stop,
        )
    return Result({"out": str(options.out), "rows": n_rows}, f"{options.out}: {n_rows:,} rows")
