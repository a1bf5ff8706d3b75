"""Recipes by name: allocation, objective, parameter rules and defaults. Imports no torch.

A new method is one module here and one line in `RECIPES`; one of another package is an entry point
`saelab.recipes` of it (docs/extending.md).
"""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from saelab.errors import UsageError
from saelab.fields import read_fields

if TYPE_CHECKING:
    from saelab.training.recipes.base import Recipe

RECIPES = {
    "batch-topk": "saelab.training.recipes.batch_topk:BatchTopK",
    "bias-adaptation": "saelab.training.recipes.bias_adaptation:BiasAdaptation",
    "crosscoder": "saelab.training.recipes.crosscoder:Crosscoder",
    "feature-choice": "saelab.training.recipes.feature_choice:FeatureChoice",
    "gated": "saelab.training.recipes.gated:Gated",
    "gradient": "saelab.training.recipes.gradient:Gradient",
    "group-bias-adaptation": "saelab.training.recipes.group_bias_adaptation:GroupBiasAdaptation",
    "jumprelu": "saelab.training.recipes.jumprelu:JumpReLU",
    "matryoshka": "saelab.training.recipes.matryoshka:Matryoshka",
    "mutual-choice": "saelab.training.recipes.mutual_choice:MutualChoice",
    "p-anneal": "saelab.training.recipes.p_anneal:PAnneal",
    "relu": "saelab.training.recipes.relu:ReLU",
    "skip-transcoder": "saelab.training.recipes.skip_transcoder:SkipTranscoder",
    "topk": "saelab.training.recipes.topk:TopK",
    "transcoder": "saelab.training.recipes.transcoder:Transcoder",
}


def recipe_names() -> list[str]:
    """Return the names of all recipes, those of other packages included."""
    return sorted(_places())


def make_recipe(name: str, options: dict[str, Any]) -> Recipe:
    """Make a recipe from its name and options; options that are not given have their defaults.

    Raises:
        UsageError: The name or an option is unknown, or a value is of the wrong type; the known ones are named.
    """
    kind = _recipe_class(name)
    return read_fields(kind, asdict(kind()) | options, f"recipe {name}", UsageError)


def recipe_from_json(raw: Any) -> Recipe:
    """Read a recipe as `Recipe.to_json` writes it, every option present.

    Raises:
        UsageError: As `make_recipe`.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise UsageError(f"recipe is {raw!r}, not a table with a name")
    options = {key: value for key, value in raw.items() if key != "name"}
    return read_fields(_recipe_class(raw["name"]), options, f"recipe {raw['name']}", UsageError)


def _recipe_class(name: str) -> type[Recipe]:
    places = _places()
    if name not in places:
        raise UsageError(f"recipe {name!r} is unknown; known: {', '.join(sorted(places))}")
    module, _, attribute = places[name].partition(":")
    return getattr(import_module(module), attribute)


def _places() -> dict[str, str]:
    """Return where each recipe's class is; our own names cannot be taken by others."""
    return {found.name: found.value for found in entry_points(group="saelab.recipes")} | RECIPES
