"""`saelab demo`: the whole loop on the embedded model, each stage timed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saelab.cli.options import Common, Count, Result
from saelab.quantities import format_bytes


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Cache activations of the embedded model on the standard library, train two SAEs, evaluate and read them."""

    out: Path = Path("runs/demo")
    """Folder for the store and the runs; a finished stage is not repeated."""
    store_tokens: Count = 1_000_000
    """Activations to cache."""
    train_tokens: Count = 3_000_000
    """Tokens that each SAE is trained on."""
    width: Count = 4096
    """Features of the larger SAE."""
    small_width: Count = 1024
    """Features of the smaller SAE."""
    k: int = 32
    """Active features per token."""
    evaluation_tokens: Count = 32_768
    """Held-out tokens to evaluate on."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.cli.evaluate import describe_evaluation
    from saelab.demo import DemoBudget, run_demo

    budget = DemoBudget(
        store_tokens=options.store_tokens,
        train_tokens=options.train_tokens,
        width=options.width,
        small_width=options.small_width,
        k=options.k,
        evaluation_tokens=options.evaluation_tokens,
    )
    report = run_demo(options.out, budget)
    parts = [
        describe_evaluation({"run": str(options.out / name)} | data) for name, data in report.runs.items()
    ]
    parts.append(f"Three features of the larger SAE, where they are most active:\n\n{report.features}")
    parts.append(f"More of them, with figures, in one page for a browser: {report.page}")
    rates = report.tokens_per_second
    stages = [
        f"  {name:<28} {seconds:7.1f} s" + (f"  {rates[name]:>10,.0f} tokens/s" if name in rates else "")
        for name, seconds in report.stages.items()
    ]
    total = sum(report.stages.values())
    stages.append(f"  {'all':<28} {total:7.1f} s  peak memory {format_bytes(report.peak_memory_bytes)}")
    parts.append("\n".join(["Time of each stage:", *stages]))
    return Result(report.to_json(), "\n\n".join(parts))
