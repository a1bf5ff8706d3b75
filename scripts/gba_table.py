"""Group bias adaptation on the published toy data: how many planted directions each configuration recovers.

    python scripts/gba_table.py --out gba.json > gba.md

Data (after Chen et al. 2025, arXiv 2506.14002): 128 unit directions in 42 dimensions, half of the rows with 3 of
them, half with 20, coefficients 1, rows of norm 1. Prints a table in Markdown and writes its numbers as JSON. A row
of the long configuration takes about half a minute on an idle core; ``--only fast`` does the rows of that name.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from saelab.activations.store import Store
from saelab.api import train
from saelab.evaluation.synthetic.generator import ExactlyPlantedFeatures
from saelab.evaluation.synthetic.recovery import feature_recovery

WIDTH, BATCH, BLOCK, ROWS = 256, 512, 16_384, 393_216
LONG = {"lr": 1e-3, "steps": 14_000}
PAPER = {
    "highest_frequency": 0.05,
    "lowest_frequency": 0.002,
    "adapt_every": 50,
    "centre": "zero",
    "start": "zero",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration of the table."""

    name: str
    """What differs."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the recipe, beside `PAPER`."""
    run: dict[str, Any] = field(default_factory=lambda: dict(LONG))
    """Learning rate, steps and other arguments of training."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the weights."""
    recipe: str = "group-bias-adaptation"
    """Name of the recipe."""


def frequencies(highest: float, lowest: float) -> dict[str, float]:
    """Options for a range of target frequencies."""
    return {"highest_frequency": highest, "lowest_frequency": lowest}


TABLE = (
    Row(name="0.05 to 0.002, T 50, lr 1e-3, 14,000 steps", seeds=(0, 1, 2)),
    Row(name="0.1 to 0.001", options=frequencies(0.1, 0.001), seeds=(0, 1, 2)),
    Row(
        name="fast: T 10, lr 2e-3, 5,000 steps",
        options={"adapt_every": 10},
        run={"lr": 2e-3, "steps": 5_000},
        seeds=(0, 1, 2),
    ),
    Row(name="centre trained", options={"centre": "trained"}),
    Row(name="output scale fixed at 1", options={"scale": "fixed"}),
    Row(name="wrong frequencies: 0.6 to 0.3", options=frequencies(0.6, 0.3)),
    Row(name="0.5 to 0.001 (the paper's second version)", options=frequencies(0.5, 0.001)),
    Row(name="biases start at their targets (ours)", options={"start": "target"}),
    Row(name="rows not of norm 1, floor scaled", run=LONG | {"data": "raw", "normalisation": "none"}),
    Row(name="one group at 0.0164, the same ceiling of L0", recipe="bias-adaptation"),
    Row(name="TopK, k 20, untied, centre trained", recipe="topk"),
)


def recipe_options(row: Row) -> dict[str, Any]:
    """Return what a row's recipe is told."""
    if row.recipe == "topk":
        return {"k": 20}
    if row.recipe == "bias-adaptation":
        rho = (0.002 / 0.05) ** (1 / 9)
        mean = sum(0.05 * rho**j for j in range(10)) / 10
        return {"frequency": mean, "adapt_every": 50, "centre": "zero", "start": "zero"}
    return PAPER | row.options


def make_store(planted: ExactlyPlantedFeatures, folder: Path, *, unit: bool) -> Store:
    """Write the planted rows, of norm 1 or as the directions add up."""
    batches = [planted.batch(index, BLOCK) for index in range(ROWS // BLOCK)]
    directions = planted.directions()
    x = torch.cat([batch.x if unit else batch.coefficients @ directions for batch in batches])
    return Store.from_tensors(folder, x, dtype="float32")


def measure(row: Row, seed: int, store: Store, planted: ExactlyPlantedFeatures, out: Path) -> dict[str, Any]:
    """Train one SAE and return what it recovered; recovery in percent."""
    how = {key: value for key, value in row.run.items() if key not in ("steps", "data")}
    run = train(
        store,
        row.recipe,
        recipe_options=recipe_options(row),
        width=WIDTH,
        tokens=row.run["steps"] * BATCH,
        batch=BATCH,
        seed=seed,
        out=out,
        quiet=True,
        **how,
    )
    sae, directions = run.sae(), planted.directions()
    x = store.rows(None, "heldout", 0, BLOCK).x
    x_hat, code = sae.reconstruct(x)
    return {
        "name": row.name,
        "seed": seed,
        "recovered_80": 100 * feature_recovery(sae.W_dec, directions, 0.8),
        "recovered_90": 100 * feature_recovery(sae.W_dec, directions, 0.9),
        "l0": code.l0().double().mean().item(),
        "fvu": float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()),
        "alive": 100 * (code.firing_counts() > 0).double().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the numbers as JSON")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    arguments = parser.parse_args()
    planted, found = ExactlyPlantedFeatures(n_features=128, d_in=42, active=(3, 20), seed=0), []
    print(
        "| configuration | seed | recovered at 0.8 / 0.9 (%) | L0 | FVU | alive (%) |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        stores = {kind: make_store(planted, place / kind, unit=kind == "unit") for kind in ("unit", "raw")}
        for row in (row for row in TABLE if arguments.only in row.name):
            for seed in row.seeds:
                store = stores[row.run.get("data", "unit")]
                one = measure(row, seed, store, planted, place / f"run-{len(found)}")
                found.append(one)
                print(
                    "| {name} | {seed} | {recovered_80:.1f} / {recovered_90:.1f} | {l0:.1f} | {fvu:.3f} | "
                    "{alive:.0f} |".format(**one),
                    flush=True,
                )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
