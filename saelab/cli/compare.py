"""`saelab compare RUN...`: one table and figures over runs, on the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from saelab.cli.options import Common, Count, Result
from saelab.cli.text_options import TextOptions
from saelab.errors import UsageError

if TYPE_CHECKING:
    from saelab.evaluation.comparison.result import Comparison
    from saelab.text.spec import TextSpec


@dataclass(frozen=True, kw_only=True)
class Options(TextOptions, Common):
    """Runs on the same tokens: a table (CSV and Parquet) and one page with all figures that needs no network.

    Evaluations that the runs already have on these tokens are taken; nothing is written into the runs.
    """

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]]
    """Run folders and groups that reconstruct the same; a group stands for its finished members."""
    out: Path | None = None
    """A new folder, or one with an earlier comparison, which is replaced; GROUP/comparison for a single group."""
    store: Path | None = None
    """Compare on the held-out documents of this store instead of the runs' own."""
    text: str | None = None
    """Compare on this text instead: held-out documents of stdlib, all of another one but what a run was trained on."""
    tokens: Count = 65_536
    """Tokens to evaluate at most."""
    device: str = "auto"
    """Device of the language model: auto, cuda, cuda:1, mps or cpu."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.activations.store import Store
    from saelab.api.comparing import compare, comparison_place

    place = comparison_place(options.runs, options.out)
    comparison = compare(
        options.runs,
        out=place,
        tokens=options.tokens,
        store=None if options.store is None else Store.open(options.store),
        text=_text(options),
        device=options.device,
    )
    data = comparison.to_json() | {"out": str(place)}
    return Result(data, describe_comparison(comparison, place))


def _text(options: Options) -> TextSpec | None:
    """Return the text to compare on.

    Raises:
        UsageError: Options of a text stand there without one.
    """
    from saelab.evaluation.sources import default_share

    if options.text is not None:
        return options.text_spec(options.text, heldout_share=default_share(options.text))
    if options.text_spec("stdlib") != TextOptions().text_spec("stdlib"):
        raise UsageError("--subset, --split, --column and the other options of a text go with --text")
    return None


_COLUMNS = (
    ("L0", "l0", "{:.2f}"),
    ("FVU", "fvu", "{:.4f}"),
    ("CE zero", "ce_recovered_zero", "{:.2%}"),
    ("CE mean", "ce_recovered_mean", "{:.2%}"),
    ("KL", "kl", "{:.4f}"),
    ("dead", "dead_fraction", "{:.1%}"),
    ("dense", "dense_fraction", "{:.1%}"),
)


def describe_comparison(comparison: Comparison, place: Path) -> str:
    """Return the main columns of the table for a terminal, and where the rest is."""
    from saelab.evaluation.origin import describe_origin

    names = [f"{one.row.setting}, seed {one.row.seed}" for one in comparison.runs]
    width = max(map(len, names))
    lines = [
        f"{len(names)} SAEs of {comparison.hook} on {comparison.n_tokens:,} {describe_origin(comparison.source)}",
        " ".join([" " * width, *(f"{label:>8}" for label, _, _ in _COLUMNS)]),
    ]
    for name, one in zip(names, comparison.runs, strict=True):
        values = [(getattr(one.row, key), form) for _, key, form in _COLUMNS]
        cells = ["-" if value is None else form.format(value) for value, form in values]
        lines.append(" ".join([f"{name:<{width}}", *(f"{cell:>8}" for cell in cells)]))
    told = dict.fromkeys(warning for one in comparison.runs for warning in one.warnings)
    lines += [f"warning: {text}" for text in (*told, *comparison.left_out)]
    return "\n".join([*lines, f"{place}: comparison.csv, comparison.parquet, comparison.json, page.html"])
