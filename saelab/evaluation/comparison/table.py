"""The table of a comparison: one row for each run, as CSV for people and as Parquet without loss."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One run; metrics have the definitions of an evaluation, and are None where one is not defined."""

    run: str
    """Path of the run's folder."""
    recipe: str
    """Name of the recipe; of an imported SAE its format and what that calls it."""
    front: str
    """Label of the Pareto front that it is on."""
    setting: str
    """Label of the runs that differ from it in the seed alone."""
    k: float | None
    """Target of active features per token; None for a recipe without one."""
    width: int
    """Number of features, d_sae."""
    seed: int | None
    """Seed of the weights; this and the next three are None for an SAE that was imported."""
    lr: float | None
    """Peak learning rate."""
    tokens: int | None
    """Tokens that it was trained on."""
    batch: int | None
    """Tokens in a step."""
    hook: str
    """Module paths that are reconstructed, joined by a comma."""
    input_hook: str
    """Module paths that are read, joined by a comma."""
    model: str
    """Name of the language model."""
    l0: float | None
    """Mean active features per token."""
    fvu: float | None
    """Fraction of variance unexplained."""
    explained_variance: float | None
    """1 - fvu."""
    mse: float | None
    """Mean squared error over all elements."""
    cosine: float | None
    """Mean cosine of a target and its reconstruction."""
    ce_clean: float | None
    """Loss of the model as it is, nats per token."""
    ce_spliced: float | None
    """With the reconstruction put in."""
    ce_zero_ablation: float | None
    """With zeros put in."""
    ce_mean_ablation: float | None
    """With the mean put in."""
    ce_recovered_zero: float | None
    """Share of the loss recovered against zeros."""
    ce_recovered_mean: float | None
    """Share of the loss recovered against the mean."""
    kl: float | None
    """KL(clean || spliced), nats per token."""
    dead_fraction: float | None
    """Share of features that never fired on these tokens."""
    dense_fraction: float | None
    """Share of features that fired on more than a tenth of these tokens."""
    zipf_exponent: float | None
    """Exponent of the Zipf curve of the densities."""
    partnered_share: float | None
    """Share of features with a partner in another seed, mean over pairs of seeds of the setting."""
    seconds_per_step: float | None
    """Wall time of a training step, divided among the SAEs of the pass."""
    tokens_per_second: float | None
    """Tokens of the pass in a second of wall time."""
    saes_in_pass: int | None
    """SAEs that were trained on that pass."""
    n_tokens: int
    """Tokens that were evaluated."""
    n_predictions: int
    """Predictions that counted for the losses."""
    tokens_hash: str
    """Digest of these tokens, the same in every row."""
    sae_identity: str
    """Identity of the SAE."""


METRICS = (
    "l0",
    "fvu",
    "explained_variance",
    "mse",
    "cosine",
    "ce_spliced",
    "ce_recovered_zero",
    "ce_recovered_mean",
    "kl",
    "dead_fraction",
    "dense_fraction",
    "seconds_per_step",
)
"""Columns that fronts are drawn and interpolated in."""
_COLUMN_TYPES = {
    "str": "string",
    "int": "int64",
    "int | None": "int64",
    "float": "float64",
    "float | None": "float64",
}


def columns() -> tuple[str, ...]:
    """Return the names of the columns, in order."""
    return tuple(field.name for field in fields(TableRow))


def as_csv(rows: Sequence[TableRow]) -> bytes:
    """Write the rows as CSV in UTF-8; an empty cell is a value that is not defined.

    A text that a spreadsheet would read as a formula gets an apostrophe in front.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")  # RFC 4180; a lone one of the two is then quoted
    writer.writerow(columns())
    for row in rows:
        writer.writerow([_cell(value) for value in asdict(row).values()])
    return file.getvalue().encode()


def as_parquet(rows: Sequence[TableRow]) -> bytes:
    """Write the rows as Parquet: text, int64 and float64 columns; null is a value that is not defined."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(
        [(field.name, pyarrow.type_for_alias(_COLUMN_TYPES[str(field.type)])) for field in fields(TableRow)]
    )
    table = pyarrow.Table.from_pylist([asdict(row) for row in rows], schema=schema)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return "'" + value
    return value
