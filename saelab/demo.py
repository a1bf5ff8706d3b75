"""The whole loop on the embedded model: cache, train two SAEs, evaluate them, index their features, report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saelab import api
from saelab.features.as_text import features_as_text
from saelab.features.telling import telling_features
from saelab.lm.load import load_model
from saelab.lm.spec import ModelSpec
from saelab.memory import peak_memory_bytes

HOOK = "blocks.2.hook_resid_post"
EXAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class DemoBudget:
    """How much the demo does; the test suite runs the same code with less."""

    store_tokens: int = 1_000_000
    """Activations to cache."""
    train_tokens: int = 3_000_000
    """Tokens that each SAE is trained on."""
    width: int = 4096
    """Features of the larger SAE."""
    small_width: int = 1024
    """Features of the smaller SAE."""
    k: int = 32
    """Active features per token."""
    evaluation_tokens: int = 32_768
    """Held-out tokens to evaluate on."""
    features: int = 3
    """Features to show as text."""


@dataclass
class DemoReport:
    """What the demo found."""

    folder: Path
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Metrics of each SAE by the name of its run, the larger one first."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage."""
    tokens_per_second: dict[str, float] = field(default_factory=dict)
    """Rate of caching and training."""
    features: str = ""
    """Three features of the larger SAE as text."""
    page: Path | None = None
    """The report of the larger SAE, one HTML file."""
    peak_memory_bytes: int = 0
    """Largest memory of the process so far."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values: metrics of the larger SAE at the top level."""
        first = next(iter(self.runs.values()), {})
        return first | {
            "runs": self.runs,
            "stages": self.stages,
            "tokens_per_second": self.tokens_per_second,
            "peak_memory_bytes": self.peak_memory_bytes,
            "features": self.features,
            "page": None if self.page is None else str(self.page),
            "folder": str(self.folder),
        }


def run_demo(folder: Path, budget: DemoBudget, quiet: bool = False) -> DemoReport:
    """Run the loop, stage by stage; stages that an earlier run finished are taken as they are.

    Args:
        folder: Where store and runs go.
        budget: How much to do.
        quiet: Show no progress.
    """
    report = DemoReport(folder)
    with _stage(report, "load"):
        lm = load_model(ModelSpec())
    with _stage(report, "cache", folder / "store") as rate:
        store = api.cache(
            "embedded", "stdlib", at=HOOK, tokens=budget.store_tokens, out=folder / "store", quiet=quiet
        )
        rate(sum(store.n_rows(None, split) for split in ("train", "heldout")))
    finished = {}
    for width in (budget.width, budget.small_width):
        name = f"topk-k{budget.k}-f{width}-s0"
        with _stage(report, f"train {name}", folder / name) as rate:
            finished[name] = api.train(
                store,
                "topk",
                recipe_options={"k": budget.k},
                width=width,
                tokens=budget.train_tokens,
                out=folder / name,
                quiet=quiet,
            )
            rate(budget.train_tokens)
    with _stage(report, "evaluate"):
        evaluations = api.evaluate_many(
            list(finished.values()), tokens=budget.evaluation_tokens, lm=lm, quiet=quiet
        )
    report.runs = {name: found.to_json() for name, found in zip(finished, evaluations, strict=True)}
    larger = next(iter(finished.values()))
    with _stage(report, "index", larger.path / "indexes" / "main") as rate:
        index = api.build_index(larger, lm=lm, quiet=quiet)
        rate(index.n_tokens)
    with _stage(report, "report"):
        chosen = telling_features(index.rows(), budget.features)
        report.features = features_as_text(index, chosen, EXAMPLES)
        report.page = api.report(larger, out=folder / "report.html")
    report.peak_memory_bytes = peak_memory_bytes()
    return report


@contextmanager
def _stage(report: DemoReport, name: str, result: Path | None = None) -> Iterator[Any]:
    """Time a stage; its rate is only known where no earlier run did a part of it."""
    begun_before = result is not None and result.exists()
    started = time.monotonic()
    done: list[int] = []
    yield done.append
    seconds = time.monotonic() - started
    report.stages[name] = round(seconds, 2)
    if done and not begun_before:
        report.tokens_per_second[name] = round(sum(done) / max(seconds, 1e-9), 1)
