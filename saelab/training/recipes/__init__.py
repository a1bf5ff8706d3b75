"""Recipes by name: allocation, objective, parameter rules and defaults. Imports no torch.

A new method is one module here and one line in `RECIPES`.
"""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from saelab.errors import UsageError

if TYPE_CHECKING:
    from saelab.training.recipes.base import Recipe

RECIPES = {
    "topk": "saelab.training.recipes.topk:TopK",
}


def make_recipe(name: str, options: dict[str, Any]) -> Recipe:
    """Make a recipe from its name and options.

    Raises:
        UsageError: The name or an option is unknown, or a value does not fit; the known ones are named.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe {name!r} is unknown; known: {', '.join(sorted(RECIPES))}")
    module, _, attribute = RECIPES[name].partition(":")
    kind: type[Recipe] = getattr(import_module(module), attribute)
    known = {field.name for field in fields(kind)}
    if unknown := sorted(options.keys() - known):
        raise UsageError(
            f"recipe {name} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    return kind(**options)
