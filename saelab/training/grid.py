"""From what a user asks for to checked configurations: one, or one for each combination of several values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from saelab.activations.source import ActivationSource
from saelab.errors import UsageError
from saelab.quantities import parse_width
from saelab.training.config import TrainConfig
from saelab.training.group import GROUP, Group
from saelab.training.recipes import make_recipe
from saelab.training.recipes.base import Recipe
from saelab.training.run import CONFIG, read_config
from saelab.training.warm_start import WarmStart

DEFAULT_WIDTH = "x16"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Values of the options that may be swept; every combination is one SAE."""

    recipes: tuple[str | Recipe, ...] = ("topk",)
    """Recipes, or their names."""
    k: tuple[int, ...] = ()
    """Mean active features per token; each recipe's own default where none is given."""
    at: tuple[str, ...] = ()
    """Hookpoints in either spelling; the only one where none is given. A recipe for several takes them together,
    and all that there are where none is given."""
    target_at: tuple[str, ...] = ()
    """Hookpoint that is reconstructed, for recipes that map one hookpoint to another; or one for each of ``at``."""
    widths: tuple[int | str, ...] = ()
    """Numbers of features, or ``x16`` for 16 times ``d_in``."""
    lrs: tuple[float, ...] = ()
    """Peak learning rates; following width and length of the run where none is given."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the weights."""
    recipe_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options of recipes, by the recipe's name."""


def make_configs(
    source: ActivationSource,
    grid: Grid,
    *,
    tokens: int,
    warm: WarmStart | None = None,
    batch: int = 2048,
    **options: Any,
) -> list[TrainConfig]:
    """Make a checked configuration for each combination, with the defaults filled in.

    Args:
        source: Activations to train on.
        grid: What is swept.
        tokens: Tokens to train on, passes over the data included.
        warm: An SAE to start from; the width follows it where none is given.
        batch: Tokens in a step.
        options: Further fields of `TrainConfig`.

    Raises:
        UsageError: A name or value is wrong.
    """
    default_width = (DEFAULT_WIDTH if warm is None else warm.sae.config.d_sae,)
    configs = []
    for recipe, k, width, lr, seed in product(
        grid.recipes, grid.k or (None,), grid.widths or default_width, grid.lrs or (None,), grid.seeds
    ):
        made = _recipe(recipe, k, grid.recipe_options)
        for hooks in _hooks(made, grid, source):
            d_sae = parse_width(width, source.hook(hooks["hook"]).d_in)
            further: dict[str, Any] = {"pool_rows": source.default_pool_rows(hooks["hook"])} | options
            further.setdefault("normalisation", made.traits.normalisation)
            config = TrainConfig(
                recipe=made,
                **hooks,
                width=d_sae,
                tokens=tokens,
                lr=made.default_lr(d_sae, max(1, tokens // max(1, batch))) if lr is None else lr,
                seed=seed,
                batch=batch,
                init_from=None if warm is None else warm.identity,
                source_identity=source.identity,
                **further,
            )
            config.check()
            configs.append(config)
    return list(dict.fromkeys(configs))


def _hooks(recipe: Recipe, grid: Grid, source: ActivationSource) -> list[dict[str, Any]]:
    """Return the hookpoints of each SAE: one SAE a hookpoint, or one for all of them."""
    if recipe.traits.hooks == "several":
        wanted = grid.at or tuple(hook.module_path for hook in source.hooks)
        first, *others = dict.fromkeys(source.hook(at).module_path for at in wanted)
        return [{"hook": first, "further_hooks": tuple(others)}]
    found = [source.hook(at).module_path for at in grid.at or (None,)]
    if recipe.traits.hooks == "one":
        return [{"hook": hook} for hook in found]
    targets = [source.hook(at).module_path for at in grid.target_at]
    if not targets:
        raise UsageError(
            f"{recipe.name} reconstructs another hookpoint than it reads: name it with --target-at"
        )
    if len(targets) not in (1, len(found)):
        raise UsageError(
            f"{recipe.name}: {len(found)} hookpoints to read (--at) and {len(targets)} to reconstruct (--target-at); "
            "give one of these, or one for each of those"
        )
    pairs = zip(found, targets if len(targets) > 1 else targets * len(found), strict=True)
    return [{"hook": hook, "target_hook": target} for hook, target in pairs]


def lengths_in(folder: Path) -> tuple[int, ...]:
    """Return the tokens of the run or group in a folder at each of its lengths; nothing where there is none.

    Raises:
        DamagedFileError: What is there cannot be read.
    """
    if (folder / GROUP).exists():
        return next(iter(Group.open(folder).members.values())).lengths
    if (folder / CONFIG).exists():
        return read_config(folder).lengths
    return ()


def with_lengths(
    lengths: tuple[int, ...], tokens: int, make: Callable[[int], Sequence[TrainConfig]]
) -> list[TrainConfig]:
    """Make configurations for a folder that may hold shorter runs of the same options.

    Whatever follows the length of a run (learning rate, warm-up, window of dead features) follows its
    first length, so that a larger ``tokens`` extends it.

    Args:
        lengths: Lengths of what is in the folder, from `lengths_in`.
        tokens: Tokens that are asked for.
        make: Makes the configurations for a number of tokens.
    """
    if not lengths or tokens < lengths[-1]:
        return list(make(tokens))
    configs = [replace(c, tokens=lengths[-1], extended_from=lengths[:-1]) for c in make(lengths[0])]
    return configs if tokens == lengths[-1] else [config.extended(tokens) for config in configs]


def _recipe(recipe: str | Recipe, k: int | None, options: Mapping[str, Mapping[str, Any]]) -> Recipe:
    if not isinstance(recipe, str):
        if k is not None or options:
            raise UsageError("options go with a recipe's name; a Recipe has its own")
        return recipe
    chosen = dict(options.get(recipe, {}))
    if k is not None:
        if "k" in chosen:
            raise UsageError(f"k of {recipe} is given twice")
        chosen["k"] = k
    return make_recipe(recipe, chosen)
