"""Training in Python: one SAE, or a grid of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saelab.activations.aligned import source_of
from saelab.activations.source import ActivationSource
from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.interrupts import stop_on_signals
from saelab.quantities import parse_count, parse_duration
from saelab.training.config import TrainConfig
from saelab.training.grid import Grid, lengths_in, make_configs, with_lengths
from saelab.training.group import Group, train_group
from saelab.training.passes import HowToTrain, Resume
from saelab.training.recipes.base import Recipe
from saelab.training.run import Run
from saelab.training.single import train_run
from saelab.training.warm_start import open_warm_start

Source = ActivationSource | Store | Path | str | Sequence[Store | Path | str]
"""Activations to train on: what `live` returned, a store or its folder, or several stores of the same tokens."""


def train_config(
    source: Source,
    recipe: str | Recipe = "topk",
    *,
    at: str | Sequence[str] | None = None,
    target_at: str | None = None,
    width: int | str | None = None,
    tokens: int | str,
    lr: float | None = None,
    seed: int = 0,
    recipe_options: dict[str, Any] | None = None,
    **options: Any,
) -> TrainConfig:
    """Make a checked training configuration with the defaults filled in.

    Args:
        source: Activations to train on; see `train`.
        recipe: A recipe, or the name of one.
        at: Hookpoint, where the source has several; several, for a recipe that joins them (all, where none is given).
        target_at: Hookpoint that is reconstructed, for a recipe that maps one to another.
        width: Number of features; ``x16`` (where none is given) means 16 times ``d_in``.
        tokens: Tokens to train on, passes over the data included.
        lr: Peak learning rate; follows the width and the length of the run where not given.
        seed: Seed of the weights.
        recipe_options: Options of a recipe that is given by name.
        options: Further fields of `TrainConfig`.

    Raises:
        UsageError: A name or value is wrong.
    """
    grid = _one(recipe, at, target_at, width, lr, seed, recipe_options)
    return make_configs(_source(source), grid, tokens=parse_count(tokens), **options)[0]


def train(
    source: Source,
    recipe: str | Recipe = "topk",
    *,
    tokens: int | str,
    out: Path | str,
    at: str | Sequence[str] | None = None,
    target_at: str | None = None,
    width: int | str | None = None,
    lr: float | None = None,
    seed: int = 0,
    recipe_options: dict[str, Any] | None = None,
    init_from: Path | str | None = None,
    resume: Resume = "exact",
    log: Sequence[str] = (),
    max_time: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Train an SAE into a new run folder, finish an interrupted run of the same options, or extend a shorter one.

    Args:
        source: A store, its folder, or what `live` returned; or several stores of the same tokens for one
            crosscoder, where the hookpoints of the second are called ``2:NAME``, of the third ``3:NAME``.
        recipe: A recipe, or the name of one.
        tokens: Tokens to train on; a larger number than the run in ``out`` has extends it.
        out: Folder of the run.
        at: See `train_config`, as for the next five.
        width: Number of features.
        lr: Peak learning rate.
        seed: Seed of the weights.
        recipe_options: Options of a recipe that is given by name.
        init_from: A run or SAE folder whose weights to start from.
        resume: ``exact`` refuses another thread count than before, ``plain`` goes on with it.
        log: Further loggers, ``wandb`` or ``tensorboard``.
        max_time: Save and stop after so long, for example ``2h``; the same call goes on.
        quiet: Show no progress.
        options: Further fields of `TrainConfig`.
    """
    source = _source(source)
    grid = _one(recipe, at, target_at, width, lr, seed, recipe_options)
    with _how(init_from, resume, log, max_time, quiet) as how:
        configs = _configs(source, grid, tokens, Path(out), how, options)
        return train_run(configs[0], source, Path(out), how)


def train_grid(
    source: Source,
    grid: Grid,
    *,
    tokens: int | str,
    out: Path | str,
    init_from: Path | str | None = None,
    resume: Resume = "exact",
    log: Sequence[str] = (),
    max_time: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> Group:
    """Train every combination of a grid on as few passes as fit into memory; see `train`.

    A group that exists gets the members that it lacks; each equals the same SAE trained alone.
    """
    source = _source(source)
    with _how(init_from, resume, log, max_time, quiet) as how:
        configs = _configs(source, grid, tokens, Path(out), how, options)
        return train_group(configs, source, Path(out), how)


def _one(
    recipe: str | Recipe,
    at: str | Sequence[str] | None,
    target_at: str | None,
    width: int | str | None,
    lr: float | None,
    seed: int,
    recipe_options: dict[str, Any] | None,
) -> Grid:
    if not isinstance(recipe, str | Recipe):
        raise UsageError(f"one recipe or its name is wanted, not {recipe!r}; train_grid trains several SAEs")
    name = recipe if isinstance(recipe, str) else recipe.name
    return Grid(
        recipes=(recipe,),
        at=() if at is None else (at,) if isinstance(at, str) else tuple(at),
        target_at=() if target_at is None else (target_at,),
        widths=() if width is None else (width,),
        lrs=() if lr is None else (lr,),
        seeds=(seed,),
        recipe_options={name: recipe_options} if recipe_options else {},
    )


def _configs(
    source: ActivationSource,
    grid: Grid,
    tokens: int | str,
    out: Path,
    how: HowToTrain,
    options: dict[str, Any],
) -> list[TrainConfig]:
    def make(length: int) -> list[TrainConfig]:
        return make_configs(source, grid, tokens=length, warm=how.warm, **options)

    return with_lengths(lengths_in(out), parse_count(tokens), make)


@contextmanager
def _how(
    init_from: Path | str | None, resume: Resume, log: Sequence[str], max_time: str | None, quiet: bool
) -> Iterator[HowToTrain]:
    with stop_on_signals(None if max_time is None else parse_duration(max_time)) as stop:
        warm = None if init_from is None else open_warm_start(Path(init_from))
        yield HowToTrain(stop=stop, resume=resume, log=tuple(log), quiet=quiet, warm=warm)


def _source(source: Source) -> ActivationSource:
    if isinstance(source, Store | Path | str):
        source = [source]
    if isinstance(source, Sequence):
        return source_of([part if isinstance(part, Store) else Store.open(part) for part in source])
    return source
