"""The loop in Python: cache, train, evaluate, load. `import saelab` offers these names without loading torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.activations.spec import CacheConfig
from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.evaluation.runs import evaluate_run, open_run
from saelab.evaluation.spec import EvaluationConfig
from saelab.lm.spec import ModelSpec
from saelab.quantities import parse_count, parse_width
from saelab.sae.autoencoder import SparseAutoencoder
from saelab.sae.files import load_sae
from saelab.storage.manifest import read_manifest
from saelab.text.spec import TextSpec
from saelab.training.config import TrainConfig, default_lr
from saelab.training.recipes import make_recipe
from saelab.training.recipes.base import Recipe
from saelab.training.run import Resume, Run, train_run

if TYPE_CHECKING:
    from saelab.evaluation.evaluate import Evaluation


def cache(
    model: str | ModelSpec,
    text: str | TextSpec,
    *,
    at: str | Sequence[str],
    tokens: int | str,
    out: Path | str,
    quiet: bool = False,
    **options: Any,
) -> Store:
    """Write a model's activations on a text to disk, or finish an interrupted store.

    Args:
        model: ``embedded``, a folder, a hub name, or a full specification.
        text: ``stdlib``, a file, or a full specification.
        at: One or several hookpoints, in either spelling.
        tokens: Activations to keep of each hookpoint; ``200k`` and ``1M`` are understood.
        out: Folder of the store.
        quiet: Show no progress.
        options: Further fields of `CacheConfig`, for example ``context`` or ``gradients``.

    Raises:
        UsageError: A name or value is wrong; nothing was started.
        Interrupted: Ctrl-C; the same call goes on.
    """
    from saelab.activations.cache import cache_activations
    from saelab.interrupts import stop_on_signals

    config = CacheConfig(
        model=ModelSpec(name=model) if isinstance(model, str) else model,
        text=TextSpec(source=text) if isinstance(text, str) else text,
        at=(at,) if isinstance(at, str) else tuple(at),
        tokens=parse_count(tokens),
        **options,
    )
    with stop_on_signals() as stop:
        return cache_activations(config, Path(out), progress=not quiet, stop=stop)


def open_store(path: Path | str) -> Store:
    """Open a finished activation store."""
    return Store.open(path)


def train_config(
    store: Store,
    recipe: str | Recipe = "topk",
    *,
    at: str | None = None,
    width: int | str = "x16",
    tokens: int | str,
    batch: int = 2048,
    lr: float | None = None,
    recipe_options: dict[str, Any] | None = None,
    **options: Any,
) -> TrainConfig:
    """Make a checked training configuration with the defaults filled in.

    Args:
        store: Activations to train on.
        recipe: A recipe, or the name of one.
        at: Hookpoint, where the store has several.
        width: Number of features; ``x16`` means 16 times ``d_in``.
        tokens: Tokens to train on, passes over the store included.
        batch: Tokens in a step.
        lr: Peak learning rate; follows the width and the length of the run where not given.
        recipe_options: Options of a recipe that is given by name.
        options: Further fields of `TrainConfig`.

    Raises:
        UsageError: A name or value is wrong.
    """
    hook = store.hook(at)
    d_sae = parse_width(width, hook.d_in)
    if isinstance(recipe, str):
        recipe = make_recipe(recipe, recipe_options or {})
    elif recipe_options:
        raise UsageError("recipe_options go with a recipe's name; a Recipe has its own")
    config = TrainConfig(
        recipe=recipe,
        hook=hook.module_path,
        width=d_sae,
        tokens=parse_count(tokens),
        lr=default_lr(d_sae, max(1, parse_count(tokens) // max(1, batch))) if lr is None else lr,
        batch=batch,
        store_identity=store.identity,
        **options,
    )
    config.check()
    return config


def train(
    store: Store | Path | str,
    recipe: str | Recipe = "topk",
    *,
    tokens: int | str,
    out: Path | str,
    resume: Resume = "exact",
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Train an SAE into a new run folder, or finish an interrupted run of the same options.

    Args:
        store: Activations, or their folder.
        recipe: A recipe, or the name of one.
        tokens: Tokens to train on, passes over the store included.
        out: Folder of the run.
        resume: ``exact`` refuses another thread count than before, ``plain`` goes on with it.
        quiet: Show no progress.
        options: See `train_config`.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    config = train_config(store, recipe, tokens=tokens, **options)
    return train_run(config, store, Path(out), resume=resume, quiet=quiet)


def evaluate(
    run: Run | Path | str, *, tokens: int | str = "65536", quiet: bool = False, **options: Any
) -> Evaluation:
    """Evaluate a finished run and keep the record in it; see `saelab.evaluation.runs.evaluate_run`."""
    run = run if isinstance(run, Run) else open_run(run)
    return evaluate_run(run, config=EvaluationConfig(tokens=parse_count(tokens)), quiet=quiet, **options)


def load(path: Path | str) -> SparseAutoencoder:
    """Load the SAE of a run, or an SAE folder."""
    path = Path(path)
    if path.is_dir() and (path / "manifest.json").exists() and read_manifest(path).kind == "sae":
        return load_sae(path)
    return open_run(path).sae()
