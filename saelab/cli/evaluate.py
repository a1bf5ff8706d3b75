"""`saelab evaluate RUN...`: the metrics of finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from saelab.cli.model_options import ModelOptions
from saelab.cli.options import Common, Count, Result
from saelab.cli.text_options import TextOptions
from saelab.errors import UsageError
from saelab.lm.spec import ModelSpec

if TYPE_CHECKING:
    from saelab.evaluation.sources import TokenSource


@dataclass(frozen=True, kw_only=True)
class Options(TextOptions, ModelOptions, Common):
    """Sparsity, reconstruction, density and loss recovered on held-out documents.

    Runs of the same hookpoints share one clean pass of the model. A group stands for its finished members. Metrics
    are about what an SAE reconstructs; one that ranks features by gradients is measured without them and with them.
    """

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]]
    """Run folders and groups; each run's own held-out documents are evaluated."""
    store: Path | None = None
    """Evaluate on the held-out documents of this store instead."""
    text: str | None = None
    """Evaluate on this text instead: held-out documents of stdlib, all of another one but what a run was trained on."""
    model: str | None = None
    """Evaluate on this model instead, with --allow-model-mismatch: embedded, a folder, or a hub name."""
    allow_model_mismatch: bool = False
    """Evaluate SAEs on another model than their own, where tokenizer and width fit."""
    tokens: Count = 65_536
    """Tokens to evaluate at most."""
    name: str | None = None
    """Name of the records, in each run's folder evaluations; heldout, or the name of --text, --store or --model."""
    out: Path | None = None
    """Keep the records in this folder instead, by the identity of the SAE: for runs that are read-only."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.evaluation.run_list import expand_runs
    from saelab.evaluation.runs import HowToEvaluate, evaluate_runs
    from saelab.evaluation.spec import EvaluationConfig

    found = expand_runs(options.runs)
    how = HowToEvaluate(
        config=EvaluationConfig(tokens=options.tokens),
        name=options.name,
        out=options.out,
        allow_model_mismatch=options.allow_model_mismatch,
        device=options.device,
    )
    evaluations = evaluate_runs(found.runs, token_source(options), how)
    records = [
        {"run": str(one.path)} | evaluation.to_json()
        for one, evaluation in zip(found.runs, evaluations, strict=True)
    ]
    text = "\n\n".join(describe_evaluation(record) for record in records)
    text += "".join(f"\nwarning: {reason}" for reason in found.left_out)
    if len(records) == 1 and list(options.runs) == [found.runs[0].path]:
        return Result(records[0], text)
    return Result({"runs": records, "left_out": list(found.left_out)}, text)


def token_source(options: Options) -> TokenSource:
    """Return where the tokens come from.

    Raises:
        UsageError: Options of a text or a model stand there without one, or with a store.
    """
    from saelab.activations.store import Store
    from saelab.evaluation.sources import TokenSource, default_share

    spec = options.model_spec(options.model or "")
    if options.model is None and spec != ModelSpec(name="", device=options.device):
        raise UsageError("--revision, --model-dtype, --device-map and --adapter go with --model")
    text = None
    if options.text is not None:
        text = options.text_spec(options.text, heldout_share=default_share(options.text))
    elif options.text_spec("stdlib") != TextOptions().text_spec("stdlib"):
        raise UsageError("--subset, --split, --column and the other options of a text go with --text")
    return TokenSource(
        store=None if options.store is None else Store.open(options.store),
        text=text,
        model=None if options.model is None else spec,
    )


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
    """Return the metrics of one run as a table for a terminal; of a g-SAE both inference forms side by side."""
    from saelab.evaluation.origin import describe_origin

    ranked = record.get("with_gradients")
    forms = [record] if ranked is None else [record, ranked]
    lines = [f"{record['run']}, {record['n_tokens']:,} {describe_origin(record['source'])}"]
    if record["input_hooks"] != record["output_hooks"]:
        lines.append(
            f"  reads {', '.join(record['input_hooks'])}, reconstructs {', '.join(record['output_hooks'])}"
        )
    if ranked is not None:
        lines.append(f"  {'features ranked':<40} {'without gradients':<20} with gradients (*)")
    for key, label, form in _ROWS:
        lines.append(_line(label, form, [one[key] for one in forms], record["undefined"].get(key, "")))
        if key == "fvu":
            for hook in record.get("fvu_by_hook", {}):
                values = [one["fvu_by_hook"][hook] for one in forms]
                why = record["undefined"].get(f"fvu_by_hook.{hook}", "")
                lines.append(_line(f"  FVU of {hook}", form, values, why))
    if ranked is not None:
        lines.append(f"  (*) labels: {ranked['labels']}; {ranked['warning']}")
    elif "with_gradients" in record["undefined"]:
        lines.append(f"  with gradients: not measured: {record['undefined']['with_gradients']}")
    lines += [f"  warning: {warning}" for warning in record["warnings"]]
    return "\n".join(lines)


def _line(label: str, form: str, values: list[float | None], why: str) -> str:
    if values[0] is None:
        return f"  {label:<40} not defined: {why}"
    shown = ["not defined" if value is None else form.format(value) for value in values]
    return f"  {label:<40} " + "".join(f"{value:<21}" for value in shown[:-1]) + shown[-1]
