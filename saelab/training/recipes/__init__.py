"""Recipes by name: allocation, objective, parameter rules and defaults. Imports no torch.

A new method is one module here and one line in `RECIPES`.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Any

from saelab.errors import UsageError
from saelab.fields import read_fields

if TYPE_CHECKING:
    from saelab.training.recipes.base import Recipe

RECIPES = {
    "topk": "saelab.training.recipes.topk:TopK",
}


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
    if name not in RECIPES:
        raise UsageError(f"recipe {name!r} is unknown; known: {', '.join(sorted(RECIPES))}")
    module, _, attribute = RECIPES[name].partition(":")
    return getattr(import_module(module), attribute)
