"""`saelab train STORE`: train an SAE, or finish an interrupted run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from saelab.cli.options import Common, Count, Result
from saelab.errors import SaelabError, UsageError
from saelab.quantities import format_bytes
from saelab.training.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Train an SAE on an activation store; the same command finishes an interrupted run."""

    store: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="STORE")]]
    """Folder of the activation store."""
    tokens: Count
    """Tokens to train on, passes over the store included, for example 3M."""
    out: Path
    """Folder of the run."""
    at: str | None = None
    """Hookpoint, where the store has several."""
    arch: str = "topk"
    """Recipe: allocation, objective and their defaults."""
    k: int | None = None
    """Mean active features per token; the recipe's default where not given."""
    width: str = "x16"
    """Number of features: 4096, 16k, or x8 for 8 times the width of the activations."""
    lr: float | None = None
    """Peak learning rate; follows the width and the length of the run where not given."""
    batch: Count = 2048
    """Tokens in a step."""
    seed: int = 0
    """Seed of the weights and of the order of the data."""
    normalisation: Literal["scale", "none", "layer_norm", "unit_norm"] = "scale"
    """How activations are scaled; the last two make activations relative to the token."""
    set: tuple[str, ...] = ()
    """Options of the recipe, for example topk.k=32."""
    checkpoint_every: Count = 500
    """Steps between checkpoints."""
    resume: Literal["exact", "plain"] = "exact"
    """Refuse, or allow, to go on with another thread count than before."""
    skip_nonfinite: bool = False
    """Leave out batches with NaN or inf instead of stopping."""
    device: str = "cpu"
    """Device to train on."""
    dry_run: bool = False
    """Print the plan and do nothing."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.activations.store import Store
    from saelab.api import train_config
    from saelab.training.memory import peak_memory_bytes, require_memory
    from saelab.training.run import train_run

    store = Store.open(options.store)
    config = train_config(
        store,
        options.arch,
        at=options.at,
        width=options.width,
        tokens=options.tokens,
        lr=options.lr,
        recipe_options=recipe_options(options),
        batch=options.batch,
        seed=options.seed,
        normalisation=options.normalisation,
        checkpoint_every=options.checkpoint_every,
        skip_nonfinite=options.skip_nonfinite,
        device=options.device,
    )
    if options.dry_run:
        plan = require_memory(config, store.hook(config.hook).d_in)
        text = (
            f"{plan.steps:,} steps, {plan.parameters:,} parameters, {format_bytes(plan.memory_bytes)} of memory, "
            f"{format_bytes(plan.disk_bytes)} on disk"
        )
        return Result({"plan": plan.to_json(), "config": config.to_json()}, text)
    finished = train_run(config, store, options.out, resume=options.resume)
    last = next((x for x in reversed(_lines(finished.path / "metrics.jsonl")) if x["fvu"] is not None), None)
    if last is None:
        raise SaelabError(
            f"{finished.path}: every batch held NaN or inf and was left out; nothing was learned"
        )
    last["tokens_per_second"] = _lines(finished.path / "timing.jsonl")[-1]["tokens_per_second"]
    last["peak_memory_bytes"] = peak_memory_bytes()
    text = (
        f"run {finished.path}: FVU {last['fvu']:.4f}, L0 {last['l0']:.1f}, dead {last['dead_fraction']:.1%}, "
        f"{last['tokens_per_second']:,.0f} tokens/s, peak memory {format_bytes(last['peak_memory_bytes'])}"
    )
    return Result({"run": str(finished.path)} | last, text)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def recipe_options(options: Options) -> dict[str, Any]:
    """Join ``--k`` and ``--set recipe.option=value`` into the recipe's options.

    Raises:
        UsageError: An assignment is malformed, or for another recipe.
    """
    if options.arch not in RECIPES:
        raise UsageError(f"--arch {options.arch} is unknown; known: {', '.join(sorted(RECIPES))}")
    chosen: dict[str, Any] = {} if options.k is None else {"k": options.k}
    for assignment in options.set:
        name, separator, value = assignment.partition("=")
        recipe, dot, option = name.partition(".")
        if option in chosen:
            raise UsageError(f"--set {assignment}: {option} is given twice")
        if not separator or not dot or recipe != options.arch:
            raise UsageError(f"--set {assignment} is not of the form {options.arch}.option=value")
        try:
            chosen[option] = json.loads(value)
        except ValueError:
            chosen[option] = value
    return chosen
