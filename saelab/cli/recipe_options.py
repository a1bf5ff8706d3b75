"""Options of recipes from the command line: `--set recipe.option=value`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from saelab.errors import UsageError
from saelab.training.recipes import recipe_names


def recipe_options(
    arch: Sequence[str], k: Sequence[int], assignments: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Read ``--set recipe.option=value`` into options by recipe.

    Args:
        arch: Recipes that are trained.
        k: Values of ``--k``, which then cannot be set as an option too.
        assignments: What stands behind ``--set``.

    Raises:
        UsageError: A recipe is unknown, or an assignment is malformed or for a recipe that is not trained.
    """
    for name in arch:
        if name not in (known := recipe_names()):
            raise UsageError(f"--arch {name} is unknown; known: {', '.join(known)}")
    chosen: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        recipe, dot, option = name.partition(".")
        if not separator or not dot or recipe not in arch:
            raise UsageError(f"--set {assignment} is not of the form {arch[0]}.option=value")
        of_recipe = chosen.setdefault(recipe, {})
        if option in of_recipe or (option == "k" and k):
            raise UsageError(f"--set {assignment}: {option} is given twice")
        try:
            of_recipe[option] = json.loads(value)
        except ValueError:
            of_recipe[option] = value
    return chosen
