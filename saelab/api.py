"""The loop in Python: cache, train, evaluate, load. `import saelab` offers these names without loading torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from saelab.activations.live import LiveSource
from saelab.activations.own import OwnBatch
from saelab.activations.source import ActivationSource, StoreSource
from saelab.activations.spec import CacheConfig, LiveConfig
from saelab.activations.store import Store
from saelab.evaluation.run_list import expand_runs, open_run
from saelab.evaluation.runs import HowToEvaluate, evaluate_runs
from saelab.evaluation.sources import TokenSource, text_to_evaluate
from saelab.evaluation.spec import EvaluationConfig
from saelab.interrupts import stop_on_signals
from saelab.lm.load import LanguageModel, module_identity
from saelab.lm.modules import Batch, ModuleActivations, iter_activations
from saelab.lm.spec import ModelSpec
from saelab.quantities import parse_count, parse_duration
from saelab.sae.autoencoder import SparseAutoencoder
from saelab.sae.files import load_sae
from saelab.storage.manifest import read_manifest
from saelab.text.spec import TextSpec
from saelab.training.config import TrainConfig
from saelab.training.grid import Grid, lengths_in, make_configs, with_lengths
from saelab.training.group import Group, train_group
from saelab.training.passes import HowToTrain, Resume
from saelab.training.recipes.base import Recipe
from saelab.training.run import Run
from saelab.training.single import train_run
from saelab.training.warm_start import open_warm_start

if TYPE_CHECKING:
    from saelab.evaluation.evaluate import Evaluation


def cache(
    model: str | ModelSpec | LanguageModel,
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
        model: ``embedded``, a folder, a hub name, a full specification, or a model that is loaded.
        text: ``stdlib``, a file, a data set on the hub, or a full specification.
        at: One or several hookpoints, in either spelling, patterns too.
        tokens: Activations to keep of each hookpoint; ``200k`` and ``1M`` are understood.
        out: Folder of the store.
        quiet: Show no progress.
        options: Further fields of `CacheConfig`, for example ``context`` or ``gradients``.

    Raises:
        UsageError: A name or value is wrong; nothing was started.
        Interrupted: Ctrl-C; the same call goes on.
    """
    from saelab.activations.cache import cache_activations

    lm = model if isinstance(model, LanguageModel) else None
    config = CacheConfig(
        model=_model_spec(model),
        text=TextSpec(source=text) if isinstance(text, str) else text,
        at=(at,) if isinstance(at, str) else tuple(at),
        tokens=parse_count(tokens),
        **options,
    )
    with stop_on_signals() as stop:
        return cache_activations(config, Path(out), progress=not quiet, stop=stop, lm=lm)


def cache_inputs(
    module: nn.Module,
    batches: Iterable[Batch],
    *,
    at: str | Sequence[str],
    out: Path | str,
    name: str = "module",
    keep: Callable[[ModuleActivations], Tensor] | None = None,
    channel_dim: int = -1,
    **options: Any,
) -> Store:
    """Write the activations of a module that reads no tokens, such as a vision transformer, to disk.

    Args:
        module: In evaluation mode.
        batches: Its inputs; see `iter_activations`.
        at: One or several places by module path, for example ``encoder.layers.2.output``.
        out: Folder of the store.
        name: What to call the module.
        keep: Given a batch of activations, returns which rows to keep, bool ``[n]``: the first position of
            each example, say, with ``lambda found: found.position == 0``.
        channel_dim: Dimension of the activations that holds the channels.
        options: Further arguments of `Store.from_batches`.
    """
    places = (at,) if isinstance(at, str) else tuple(at)

    def rows() -> Iterator[OwnBatch]:
        for found in iter_activations(module, batches, at=places, channel_dim=channel_dim):
            kept = found if keep is None else found.keep(keep(found))
            yield OwnBatch({hp.module_path: x for hp, x in kept.activations.items()}, kept.example)

    return Store.from_batches(Path(out), rows(), model=module_identity(module, name), **options)


def open_store(path: Path | str) -> Store:
    """Open a finished activation store."""
    return Store.open(path)


def live(
    model: str | ModelSpec | LanguageModel, text: str | TextSpec, *, at: str | Sequence[str], **options: Any
) -> LiveSource:
    """Open a model and a text as a source that `train` reads while it trains, with nothing on the disk.

    Args:
        model: ``embedded``, a folder, a hub name, a full specification, or a model that is loaded.
        text: ``stdlib``, a file, a data set on the hub, or a full specification.
        at: One or several hookpoints, in either spelling, patterns too.
        options: Further fields of `LiveConfig`, for example ``context`` or ``pool_rows``.
    """
    lm = model if isinstance(model, LanguageModel) else None
    config = LiveConfig(
        model=_model_spec(model),
        text=TextSpec(source=text) if isinstance(text, str) else text,
        at=(at,) if isinstance(at, str) else tuple(at),
        **options,
    )
    return LiveSource(config, lm)


def train_config(
    source: Store | ActivationSource,
    recipe: str | Recipe = "topk",
    *,
    at: str | None = None,
    width: int | str | None = None,
    tokens: int | str,
    lr: float | None = None,
    seed: int = 0,
    recipe_options: dict[str, Any] | None = None,
    **options: Any,
) -> TrainConfig:
    """Make a checked training configuration with the defaults filled in.

    Args:
        source: Activations to train on.
        recipe: A recipe, or the name of one.
        at: Hookpoint, where the source has several.
        width: Number of features; ``x16`` (where none is given) means 16 times ``d_in``.
        tokens: Tokens to train on, passes over the data included.
        lr: Peak learning rate; follows the width and the length of the run where not given.
        seed: Seed of the weights.
        recipe_options: Options of a recipe that is given by name.
        options: Further fields of `TrainConfig`.

    Raises:
        UsageError: A name or value is wrong.
    """
    grid = _one(recipe, at, width, lr, seed, recipe_options)
    return make_configs(_source(source), grid, tokens=parse_count(tokens), **options)[0]


def train(
    source: Store | ActivationSource | Path | str,
    recipe: str | Recipe = "topk",
    *,
    tokens: int | str,
    out: Path | str,
    at: str | None = None,
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
        source: A store, its folder, or what `live` returned.
        recipe: A recipe, or the name of one.
        tokens: Tokens to train on; a larger number than the run in ``out`` has extends it.
        out: Folder of the run.
        at: See `train_config`, as for the next four.
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
    grid = _one(recipe, at, width, lr, seed, recipe_options)
    with _how(init_from, resume, log, max_time, quiet) as how:
        configs = _configs(source, grid, tokens, Path(out), how, options)
        return train_run(configs[0], source, Path(out), how)


def train_grid(
    source: Store | ActivationSource | Path | str,
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
    at: str | None,
    width: int | str | None,
    lr: float | None,
    seed: int,
    recipe_options: dict[str, Any] | None,
) -> Grid:
    name = recipe if isinstance(recipe, str) else recipe.name
    return Grid(
        recipes=(recipe,),
        at=() if at is None else (at,),
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


def _source(source: Store | ActivationSource | Path | str) -> ActivationSource:
    if isinstance(source, Path | str):
        source = Store.open(source)
    return StoreSource(source) if isinstance(source, Store) else source


def _model_spec(model: str | ModelSpec | LanguageModel) -> ModelSpec:
    if isinstance(model, LanguageModel):
        return model.spec
    return ModelSpec(name=model) if isinstance(model, str) else model


def evaluate(
    run: Run | Path | str,
    *,
    tokens: int | str = "65536",
    store: Store | None = None,
    text: str | TextSpec | None = None,
    model: str | ModelSpec | None = None,
    lm: LanguageModel | None = None,
    **options: Any,
) -> Evaluation:
    """Evaluate one finished run and keep the record in it; see `evaluate_many`."""
    run = run if isinstance(run, Run) else open_run(run)
    return evaluate_many([run], tokens=tokens, store=store, text=text, model=model, lm=lm, **options)[0]


def evaluate_many(
    runs: Sequence[Run | Path | str],
    *,
    tokens: int | str = "65536",
    store: Store | None = None,
    text: str | TextSpec | None = None,
    model: str | ModelSpec | None = None,
    lm: LanguageModel | None = None,
    **options: Any,
) -> list[Evaluation]:
    """Evaluate finished runs, those at one hookpoint on one clean pass of the model, and keep their records.

    Args:
        runs: Runs, their folders, or groups, which stand for their finished members.
        tokens: Held-out tokens to evaluate at most.
        store: Evaluate on the held-out documents of this store instead of each run's own.
        text: Evaluate on this text instead.
        model: Evaluate on this model instead; it needs ``allow_model_mismatch``.
        lm: The model of the tokens, if it is loaded already.
        options: Further fields of `HowToEvaluate`, for example ``name``, ``out`` or ``quiet``.

    Raises:
        UsageError: Runs, store, text and model do not belong together; nothing was started.
    """
    opened = [one for run in runs for one in ([run] if isinstance(run, Run) else expand_runs([run]).runs)]
    source = TokenSource(
        store=store,
        text=text_to_evaluate(text) if isinstance(text, str) else text,
        model=ModelSpec(name=model) if isinstance(model, str) else model,
    )
    how = HowToEvaluate(config=EvaluationConfig(tokens=parse_count(tokens)), **options)
    return evaluate_runs(opened, source, how, lm=lm)


def load(path: Path | str) -> SparseAutoencoder:
    """Load the SAE of a run, or an SAE folder."""
    path = Path(path)
    if path.is_dir() and (path / "manifest.json").exists() and read_manifest(path).kind == "sae":
        return load_sae(path)
    return open_run(path).sae()
