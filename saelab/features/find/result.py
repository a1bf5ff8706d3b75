"""What was found: one row a candidate feature, as a table, as JSON and as a file."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from saelab.errors import UsageError
from saelab.storage.files import write_aside


@dataclass(frozen=True, kw_only=True)
class FoundFeature:
    """A candidate, measured on the held-out half."""

    feature: int
    """Index of the feature."""
    name: str
    """Label or name; empty without an index."""
    auroc: float
    """P(a positive unit has more than a negative one), equal ones counted half."""
    auroc_low: float
    """Lower end of the 95 % interval."""
    auroc_high: float
    """Upper end."""
    p_adjusted: float
    """Share of random placements in which the best of all candidates reaches this AUROC; at least 1 / (draws + 1)."""
    f1: float
    """F1 of the threshold that was best on the selection half."""
    threshold: float
    """That threshold."""
    density: float
    """Share of the held-out units on which it is active."""
    mean_positive: float
    """Mean over the positive units on which it is active; 0 where there is none."""
    mean_negative: float
    """The same of the negative units."""
    lift: float
    """Density among positives / density among all; a random feature of equal density has 1."""
    selection_auroc: float
    """AUROC on the half that chose it, which is too high."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The candidates, best first, and what they were measured on."""

    features: tuple[FoundFeature, ...]
    """By held-out AUROC."""
    run: str
    """The run."""
    positive: str
    """The first set as given."""
    negative: str
    """The second set as given."""
    unit: str
    """What is told apart."""
    pool: str
    """How a feature's values on a unit become one."""
    n_positive: int
    """Positive units of the held-out half."""
    n_negative: int
    """Negative ones."""
    n_documents: int
    """Documents of the held-out half."""
    n_in_both: int
    """Units in both sets, left out."""
    n_from_corpus: int
    """Texts of files that are documents of the indexed corpus, whose codes were taken from there."""
    n_compared: int
    """Features that are active on a unit of the selection half."""
    null_auroc_95: float
    """What the best of as many candidates stays below in 95 % of random placements."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"features": [asdict(one) for one in self.features]}

    def write(self, path: Path | str) -> None:
        """Write the candidates as .parquet or .csv, whole or not at all.

        In CSV a text that a spreadsheet would run as a formula gets an apostrophe before it.

        Raises:
            UsageError: The file is there already, or of another kind.
        """
        path = Path(path)
        require_new(path, (".parquet", ".csv"), "find")
        table = pa.Table.from_pylist([asdict(one) for one in self.features], _SCHEMA)
        if path.suffix == ".parquet":
            write_aside(path, lambda file: pq.write_table(table, file))
            return
        names = pa.array([neutral(one.name) for one in self.features], pa.string())
        table = table.set_column(1, "name", names)
        buffer = io.BytesIO()
        pyarrow.csv.write_csv(table, buffer)
        write_aside(path, lambda file: _write(file, buffer.getvalue()))

    def __str__(self) -> str:
        there = (
            f"{self.n_from_corpus:,} of the texts are documents of the indexed corpus, whose codes were taken"
        )
        lines = [there] if self.n_from_corpus else []
        lines += [
            f"{self.n_positive:,} positive and {self.n_negative:,} negative {self.unit}s of {self.n_documents:,} "
            f"held-out documents; {self.n_compared:,} features compared on the other half, {len(self.features)} shown",
            f"by chance the best of these stays below AUROC {self.null_auroc_95:.3f} (95 % of random placements)",
            f"{'feature':>8}  {'name':<40} {'AUROC [95 %]':<21} {'p adj.':>6} {'F1':>5} {'density':>8} "
            f"{'mean +':>7} {'mean -':>7} {'lift':>7}",
        ]
        for one in self.features:
            interval = f"{one.auroc:.3f} [{one.auroc_low:.3f}, {one.auroc_high:.3f}]"
            name = "".join(c if c.isprintable() else "\ufffd" for c in one.name)[:40]
            lines.append(
                f"{one.feature:>8}  {name:<40} {interval:<21} {one.p_adjusted:>6.3f} {one.f1:>5.2f} "
                f"{one.density:>8.2%} {one.mean_positive:>7.2f} {one.mean_negative:>7.2f} {one.lift:>7.1f}"
            )
        return "\n".join(lines)


_SCHEMA = pa.schema(
    [("feature", pa.uint32()), ("name", pa.string())]
    + [(name, pa.float64()) for name in FoundFeature.__dataclass_fields__ if name not in ("feature", "name")]
)


def neutral(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def require_new(path: Path, kinds: tuple[str, ...], doing: str) -> None:
    """Refuse a file that is there, or whose name ends in another way, with a UsageError."""
    if path.suffix not in kinds:
        raise UsageError(f"{doing}: {path} must end in {' or '.join(kinds)}")
    if path.exists():
        raise UsageError(f"{doing}: {path} is there already; nothing is overwritten, give another name")


def _write(file: Any, content: bytes) -> None:
    file.write(content)
