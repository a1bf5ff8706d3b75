"""`saelab train STORE` or `saelab train MODEL TEXT`: train SAEs, or finish, extend or add to what is there."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from saelab.activations.spec import LiveConfig
from saelab.cli.harvest_options import HarvestOptions
from saelab.cli.options import Common, Count, OptionalCount, Result
from saelab.cli.recipe_options import recipe_options
from saelab.errors import UsageError
from saelab.quantities import parse_duration
from saelab.training.recipes import make_recipe

if TYPE_CHECKING:
    from saelab.activations.live import LiveSource
    from saelab.activations.source import ActivationSource
    from saelab.training.config import TrainConfig
    from saelab.training.grid import Grid

DEFAULT_POOL_ROWS = LiveConfig.pool_rows


@dataclass(frozen=True, kw_only=True)
class Options(HarvestOptions, Common):
    """Train SAEs on a store, or live on a model and a text. The same command finishes what was interrupted.

    Several values of --arch, --k, --width, --lr, --seed or --at make a group: every combination is
    trained on one pass. A larger --tokens extends what is there, new values add SAEs to a group.
    """

    source: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="STORE | MODEL TEXT")]]
    """Folder of an activation store; or a model and a text, which are read live, with nothing on disk but the run."""
    tokens: Count
    """Tokens to train on, passes over the data included, for example 3M."""
    out: Path
    """Folder of the run, or of the group."""
    with_stores: Annotated[tuple[Path, ...], tyro.conf.arg(name="with")] = ()
    """Further stores of the same tokens, of other models, for one crosscoder: the hookpoints of the second are
    called 2:NAME, of the third 3:NAME."""
    at: tuple[str, ...] = ()
    """Hookpoints or patterns (``blocks.{1..3}.hook_mlp_out``); the only one of a store where none is given.
    A crosscoder takes them together, all of its stores where none is given."""
    target_at: tuple[str, ...] = ()
    """Hookpoint that is reconstructed, for recipes that map one to another (transcoder); or as many, names or
    patterns, as --at selects: they are paired in the order of the model."""
    arch: tuple[str, ...] = ("topk",)
    """Recipes: allocation, objective and their defaults."""
    k: tuple[int, ...] = ()
    """Mean active features per token; the recipe's default where not given."""
    width: tuple[str, ...] = ()
    """Numbers of features: 4096, 16k, or x8 for 8 times the width of the activations; x16 where not given."""
    lr: tuple[float, ...] = ()
    """Peak learning rates; following the width and the length of the run where not given."""
    seed: tuple[int, ...] = (0,)
    """Seeds of the weights."""
    data_seed: int = 0
    """Seed of the order of the data, the same for all SAEs of a group."""
    batch: Count = 2048
    """Tokens in a step."""
    normalisation: Literal["scale", "none", "layer_norm", "unit_norm"] | None = None
    """How activations are scaled, scale for most recipes; the last two make activations relative to the token."""
    set: tuple[str, ...] = ()
    """Options of a recipe, for example topk.k=32."""
    init_from: Path | None = None
    """Start from the weights of this run or SAE; its width is taken where none is given."""
    allow_model_mismatch: bool = False
    """Let --init-from name an SAE of another model with the same shapes and tokenizer."""
    checkpoint_every: Count = 500
    """Steps between checkpoints."""
    max_time: str | None = None
    """Save and stop after so long (90s, 30m, 2.5h); the same command goes on."""
    log: tuple[str, ...] = ()
    """Also log to ``wandb`` (offline, unless WANDB_MODE says otherwise) or ``tensorboard``; metrics.jsonl always is."""
    resume: Literal["exact", "plain"] = "exact"
    """Refuse, or allow, to go on with other threads or kernels than before."""
    skip_nonfinite: bool = False
    """Leave out batches with NaN or inf instead of stopping."""
    sae_device: str | None = None
    """Device to train on, where it is not --device."""
    pool_rows: OptionalCount = None
    """Activations that are mixed in memory at a time; live 131,072 where not given, and no more than --tokens."""
    dry_run: bool = False
    """Print the plan and do nothing."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.cli.training_report import announce, describe_group, describe_plan, describe_run
    from saelab.interrupts import stop_on_signals
    from saelab.training.grid import lengths_in, make_configs, with_lengths
    from saelab.training.group import GROUP, train_group
    from saelab.training.loggers import check_logger_names
    from saelab.training.passes import HowToTrain
    from saelab.training.run import CONFIG
    from saelab.training.single import train_run
    from saelab.training.warm_start import open_warm_start

    seconds = None if options.max_time is None else parse_duration(options.max_time)
    check_logger_names(options.log)
    lengths = lengths_in(options.out)
    source = _open_source(options, lengths)
    warm = None if options.init_from is None else open_warm_start(options.init_from)
    grid = _grid(options, source)

    def make(tokens: int) -> list[TrainConfig]:
        return make_configs(source, grid, tokens=tokens, warm=warm, **_common(options))

    configs = with_lengths(lengths, options.tokens, make)
    is_group = len(configs) > 1 or (options.out / GROUP).exists()
    if options.dry_run:
        return describe_plan(configs, source, options.out if is_group else None)
    with stop_on_signals(seconds) as stop:
        how = HowToTrain(stop=stop, resume=options.resume, log=options.log, warm=warm)
        if not is_group:
            return describe_run(train_run(configs[0], source, options.out, how).path)
        if not (options.out / CONFIG).exists():
            announce(configs, source, options.out)
        group = train_group(configs, source, options.out, how)
    return describe_group(group.path, list(group.members), group.parked)


def _open_source(options: Options, lengths: tuple[int, ...]) -> ActivationSource:
    from saelab.activations.aligned import open_stores

    match options.source:
        case (store,):
            stores = (Path(store), *options.with_stores)
            for path in stores:
                _require_store(path, options)
            return open_stores(stores)
        case (model, text):
            return _open_live(options, model, text, lengths)
    raise UsageError(
        f"give a STORE, or a MODEL and a TEXT, not {len(options.source)} places ({' '.join(options.source)})"
    )


def _require_store(path: Path, options: Options) -> None:
    """Refuse a path that is no store, and options that only a live model and text can follow."""
    if not path.exists():
        raise UsageError(f"there is no store {path}; to train live give a MODEL and a TEXT")
    if (path / "config.json").exists() and not (path / "tokens.bin").exists() and _is_model(path):
        raise UsageError(f"{path} is a model; give a TEXT after it to train live, or cache it first")
    live = {field.name for field in fields(HarvestOptions)} - {"device"}
    defaults = {field.name: field.default for field in fields(Options)}
    given = sorted(name for name in live if getattr(options, name) != defaults[name])
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{names}: the store {path} was made with its own; these are for a MODEL and a TEXT")


def _is_model(path: Path) -> bool:
    from saelab.storage.files import read_json

    content = read_json(path / "config.json")
    return isinstance(content, dict) and "model_type" in content


def _open_live(options: Options, model: str, text: str, lengths: tuple[int, ...]) -> LiveSource:
    from saelab.activations.live import LiveSource

    if options.skip_nonfinite:
        raise UsageError(
            "--skip-nonfinite is for a store: a live stream stops at activations that are not finite"
        )
    if options.with_stores:
        raise UsageError(
            "--with names a store of the same tokens as the STORE before it; cache the model first"
        )
    if not options.at:
        raise UsageError("name at least one hookpoint (--at); `saelab hooks MODEL` lists them")
    first_length = lengths[0] if lengths else options.tokens
    config = LiveConfig(
        **options.harvest_settings(model, text),
        at=(*options.at, *options.target_at),
        pool_rows=options.pool_rows or min(DEFAULT_POOL_ROWS, first_length),
        gradients=any(make_recipe(name, {}).traits.loss_gradients for name in options.arch),
    )
    return LiveSource(config)


def _grid(options: Options, source: ActivationSource) -> Grid:
    from saelab.lm.hooks import Hookpoint, resolve_all
    from saelab.training.grid import Grid

    hookpoints = [Hookpoint(hook.module_path, hook.alias, hook.d_in) for hook in source.hooks]

    def resolved(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(found.module_path for found in resolve_all(names, hookpoints)) if names else ()

    return Grid(
        recipes=options.arch,
        k=options.k,
        at=resolved(options.at),
        target_at=resolved(options.target_at),
        widths=options.width,
        lrs=options.lr,
        seeds=options.seed,
        recipe_options=recipe_options(options.arch, options.k, options.set),
    )


def _common(options: Options) -> dict[str, Any]:
    from saelab.lm.devices import choose_device

    chosen: dict[str, Any] = {
        "batch": options.batch,
        "data_seed": options.data_seed,
        "checkpoint_every": options.checkpoint_every,
        "skip_nonfinite": options.skip_nonfinite,
        "allow_model_mismatch": options.allow_model_mismatch,
        "device": str(choose_device(options.sae_device or options.device)),
    }
    given = {"pool_rows": options.pool_rows, "normalisation": options.normalisation}
    return chosen | {name: value for name, value in given.items() if value is not None}
