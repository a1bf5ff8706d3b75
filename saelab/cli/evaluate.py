"""`saelab evaluate RUN...`: the metrics of finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from saelab.cli.options import Common, Count, Result
from saelab.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Sparsity, reconstruction, density and loss recovered on held-out documents."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]]
    """Run folders; the held-out documents of each run's own store are evaluated."""
    store: Path | None = None
    """Evaluate on the held-out documents of this store instead."""
    text: str | None = None
    """Evaluate on this text instead: held-out documents of stdlib, all of a file."""
    tokens: Count = 65_536
    """Tokens to evaluate at most."""
    name: str = "heldout"
    """Name of the record in the run's folder evaluations."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.activations.store import Store
    from saelab.evaluation.runs import evaluate_run, open_run
    from saelab.evaluation.spec import EvaluationConfig

    if not options.runs:
        raise UsageError("give at least one run folder")
    runs = [open_run(path) for path in options.runs]
    store = None if options.store is None else Store.open(options.store)
    records = []
    for one in runs:
        evaluation = evaluate_run(
            one,
            store=store,
            text=options.text,
            config=EvaluationConfig(tokens=options.tokens),
            name=options.name,
        )
        records.append({"run": str(one.path)} | evaluation.to_json())
    text = "\n\n".join(describe_evaluation(record) for record in records)
    return Result(records[0] if len(records) == 1 else {"runs": records}, text)


_ROWS = (
    ("l0", "active features per token (L0)", "{:.2f}"),
    ("fvu", "fraction of variance unexplained (FVU)", "{:.4f}"),
    ("explained_variance", "explained variance", "{:.4f}"),
    ("mse", "mean squared error", "{:.5g}"),
    ("cosine", "cosine of x and its reconstruction", "{:.4f}"),
    ("dead_fraction", "features that never fired", "{:.2%}"),
    ("dense_fraction", "features that fired on more than 10 %", "{:.2%}"),
    ("ce_clean", "loss of the model, nats/token", "{:.4f}"),
    ("ce_spliced", "  with the reconstruction put in", "{:.4f}"),
    ("ce_zero_ablation", "  with zeros put in", "{:.4f}"),
    ("ce_mean_ablation", "  with the mean put in", "{:.4f}"),
    ("ce_recovered_zero", "loss recovered against zeros", "{:.2%}"),
    ("ce_recovered_mean", "loss recovered against the mean", "{:.2%}"),
    ("kl", "KL(clean || spliced), nats/token", "{:.4f}"),
)


def describe_evaluation(record: dict[str, Any]) -> str:
    """Return the metrics of one run as a table for a terminal."""
    lines = [f"{record['run']}, {record['n_tokens']:,} held-out tokens"]
    for key, label, form in _ROWS:
        value = record[key]
        shown = (
            form.format(value) if value is not None else f"not defined: {record['undefined'].get(key, '')}"
        )
        lines.append(f"  {label:<40} {shown}")
    lines += [f"  warning: {warning}" for warning in record["warnings"]]
    return "\n".join(lines)
