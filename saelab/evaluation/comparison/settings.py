"""Which runs belong together: those that differ in the seed alone, and those that make one Pareto front.

Nothing here knows a recipe by its name: whatever its configuration holds tells runs apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saelab.training.config import TrainConfig
from saelab.training.imported import ImportedConfig

SEED, BUDGET = "seed", "recipe.k"
IGNORED = {
    SEED,
    "recipe.name",
    "device",
    "checkpoint_every",
    "log_every",
    "skip_nonfinite",
    "allow_model_mismatch",
}
"""Fields that change no result, or that are named by themselves."""
LONGEST_VALUE = 12


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a run belongs."""

    front: str
    """Label of its Pareto front: the recipe, and whatever else but k and the seed tells fronts apart."""
    setting: str
    """Label of the runs that differ from it in the seed alone: the front's, and k."""


def settings_of(configs: Sequence[TrainConfig | ImportedConfig]) -> list[Setting]:
    """Return where each run belongs among the others, in their order.

    A label names the recipe, its options that differ between fronts of that recipe, and everything else that
    differs between any two fronts; a learning rate or scaling that is the recipe's default is no difference.
    """
    told = [_told(config) for config in configs]
    names = [name_of(config) for config in configs]
    varying = _varying(names, told)
    fronts, settings = _Labels(), _Labels()
    found = []
    for name, facts in zip(names, told, strict=True):
        parts = [f"{_plain(key)}={_shown(facts[key])}" for key in varying[name] if key in facts]
        without_k = {key: value for key, value in facts.items() if key != BUDGET}
        front = fronts.of((name, repr(without_k)), ", ".join([name, *parts]))
        k = facts.get(BUDGET)
        label = front if k is None else f"{front}, k={_shown(k)}"
        found.append(Setting(front=front, setting=settings.of((name, repr(facts)), label)))
    return found


def name_of(config: TrainConfig | ImportedConfig) -> str:
    """Return the recipe of a run; of an imported one its format and what that calls it."""
    if isinstance(config, ImportedConfig):
        return f"{config.format} {config.architecture}"
    return config.recipe.name


class _Labels:
    """Gives different things different labels: values are shortened in them, so two may read alike."""

    def __init__(self) -> None:
        self._labels: dict[tuple[str, str], str] = {}

    def of(self, key: tuple[str, str], wanted: str) -> str:
        if key not in self._labels:
            label, number = wanted, 2
            while label in self._labels.values():
                label, number = f"{wanted} ({number})", number + 1
            self._labels[key] = label
        return self._labels[key]


def _told(config: TrainConfig | ImportedConfig) -> dict[str, Any]:
    """Return what a configuration says that may change its result, by dotted keys."""
    if isinstance(config, ImportedConfig):
        return {"source": config.source, "revision": config.revision, "width": config.width}
    flat = _flat(config.to_json())
    if config.lr == config.recipe.default_lr(config.width, config.first_steps):
        flat["lr"] = "default"
    if config.normalisation == config.recipe.traits.normalisation:
        flat["normalisation"] = "default"
    return {key: value for key, value in flat.items() if key not in IGNORED}


def _flat(raw: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in raw.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = tuple(value) if isinstance(value, list) else value
    return found


def _varying(names: Sequence[str], told: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Return for each recipe the keys that a label must show; k is an axis, not a difference."""

    def differ(key: str, among: list[dict[str, Any]]) -> bool:
        return len({repr(facts[key]) for facts in among if key in facts}) > 1

    found = {}
    for name in dict.fromkeys(names):
        own = [facts for facts, other in zip(told, names, strict=True) if other == name]
        keys = dict.fromkeys(key for facts in own for key in facts if key != BUDGET)
        found[name] = [key for key in keys if differ(key, own if key.startswith("recipe.") else list(told))]
    return found


def _plain(key: str) -> str:
    return key.removeprefix("recipe.")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)[:LONGEST_VALUE]
