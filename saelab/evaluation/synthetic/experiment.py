"""Train SAEs on planted data and measure what they found.

```
OUT/planted.json     what was planted, and how many rows of it
    store/           an activation store of them
    runs/            a group of SAEs trained on it
    recovery.json    what was found, for every finished SAE of the group
```
The same call again finishes what was interrupted, and trains only what is new.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from saelab.activations.own import OwnBatch
from saelab.activations.source import StoreSource
from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.evaluation.synthetic.measure import FRESH_INDEX, Consistency, Measured, consistency, measure
from saelab.evaluation.synthetic.planted import Planted
from saelab.evaluation.synthetic.spec import PlantedSpec
from saelab.fields import differences
from saelab.storage.files import read_json, write_json
from saelab.storage.lock import LOCK_NAME, locked
from saelab.storage.manifest import MANIFEST_NAME
from saelab.training.config import TrainConfig
from saelab.training.grid import Grid, lengths_in, make_configs, with_lengths
from saelab.training.group import Group, train_group
from saelab.training.passes import HowToTrain

PLANTED, STORE, RUNS, RECOVERY = "planted.json", "store", "runs", "recovery.json"
BATCH_ROWS = 8192
BLOCK_ROWS = 512
"""Rows that go to one split together."""


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """How much is planted, trained on and measured."""

    planted: PlantedSpec
    """The data."""
    tokens: int
    """Tokens that each SAE is trained on, passes over the data included."""
    rows: int = 262_144
    """Planted rows on the disk."""
    evaluation_rows: int = 65_536
    """Fresh rows to measure on."""


@dataclass(frozen=True)
class SyntheticReport:
    """What was planted and what was found."""

    folder: Path
    planted: dict[str, Any]
    """The data and their options, none left to a default."""
    runs: dict[str, Measured]
    """Each finished SAE by the name of its run."""
    configs: dict[str, TrainConfig]
    """The configuration of each."""
    seeds: dict[tuple[str, ...], Consistency]
    """For runs that differ in their seed only: how alike they are."""
    parked: dict[str, str]
    """Runs that diverged, with the diagnosis."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values: a single result at the top level, several under ``runs``."""
        runs = [
            {"run": name, "recipe": self.configs[name].recipe.to_json(), "seed": self.configs[name].seed}
            | found.to_json()
            for name, found in self.runs.items()
        ]
        seeds = [{"runs": list(names)} | asdict(found) for names, found in self.seeds.items()]
        common = {"planted": self.planted, "consistency": seeds, "parked": self.parked}
        return (runs[0] if len(runs) == 1 else {"runs": runs}) | common


def run_synthetic(
    config: SyntheticConfig, grid: Grid, folder: Path, how: HowToTrain | None = None, **options: Any
) -> SyntheticReport:
    """Plant data, train a grid of SAEs on them, and measure every finished SAE in the folder.

    Args:
        config: What to plant, and how much.
        grid: What to train.
        folder: Where everything goes, as described above.
        how: How to watch, stop and resume.
        options: Further fields of `TrainConfig`, such as ``batch`` and ``normalisation``.

    Raises:
        UsageError: A value is wrong, or the folder holds something else.
        Interrupted: A stop was asked for; the same call goes on.
    """
    if config.rows < 1 or config.evaluation_rows < 1:
        raise UsageError(
            f"rows and evaluation_rows must be at least 1, not {config.rows} and {config.evaluation_rows}"
        )
    planted = config.planted.make()
    source = StoreSource(_planted_store(config, planted, folder))

    def make(tokens: int) -> list[TrainConfig]:
        return make_configs(source, grid, tokens=tokens, data_seed=planted.seed, **options)

    configs = with_lengths(lengths_in(folder / RUNS), config.tokens, make)
    group = train_group(configs, source, folder / RUNS, how)
    report = _report(config, planted, folder, group)
    write_json(folder / RECOVERY, report.to_json())
    return report


def _planted_store(config: SyntheticConfig, planted: Planted, folder: Path) -> Store:
    """Return the store of the planted rows; one that was not finished is made again."""
    wanted = {"data": config.planted.data, "rows": config.rows} | _plain(planted)
    with locked(folder, "synthetic"):
        if (folder / PLANTED).exists():
            if found := differences(read_json(folder / PLANTED), wanted):
                raise UsageError(
                    f"{folder} holds other planted data ({'; '.join(found)}); choose another folder"
                )
        elif strangers := sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK_NAME):
            raise UsageError(f"{folder} holds other files ({', '.join(strangers[:3])}); choose a new folder")
        else:
            write_json(folder / PLANTED, wanted)
        if (folder / STORE / MANIFEST_NAME).exists():
            return Store.open(folder / STORE)
        shutil.rmtree(folder / STORE, ignore_errors=True)
        return Store.from_batches(folder / STORE, _batches(planted, config.rows), dtype="float32")


def _batches(planted: Planted, rows: int) -> Iterator[OwnBatch]:
    for index, start in enumerate(range(0, rows, BATCH_ROWS)):
        assert index < FRESH_INDEX
        numbers = torch.arange(start, min(start + BATCH_ROWS, rows))
        yield OwnBatch({"planted": planted.batch(index, len(numbers)).x}, numbers // BLOCK_ROWS)


def _report(config: SyntheticConfig, planted: Planted, folder: Path, group: Group) -> SyntheticReport:
    runs = {name: measure(run.sae(), planted, config.evaluation_rows) for name, run in group.finished.items()}
    alike: dict[TrainConfig, list[str]] = {}
    for name in runs:
        alike.setdefault(replace(group.members[name], seed=0), []).append(name)
    seeds = {
        tuple(names): found
        for names in alike.values()
        if (found := consistency([runs[name] for name in names])) is not None
    }
    described = {"data": config.planted.data, "rows": config.rows} | _plain(planted)
    return SyntheticReport(folder, described, runs, group.members, seeds, group.parked)


def _plain(planted: Planted) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(planted).items()}
