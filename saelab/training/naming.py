"""Names of a group's members: short, telling, and safe as names of folders."""

from __future__ import annotations

import re
from collections.abc import Sequence

from saelab.training.config import TrainConfig

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_RESERVED = {"checkpoints", "lengths", "logs"}


def is_member_name(name: str) -> bool:
    """Whether a name can be a member's folder."""
    return _NAME.fullmatch(name) is not None and name not in _RESERVED


def name_members(
    configs: Sequence[TrainConfig], hooks: Sequence[str], taken: set[str]
) -> dict[str, TrainConfig]:
    """Give each configuration a name, such as `topk-k32-f4096-s0`, with more parts where it needs them.

    The hookpoint is named where the source has several, the learning rate where it is not the
    default; a number follows where that still leaves two alike.

    Args:
        configs: Configurations, all different.
        hooks: Hookpoints of the source.
        taken: Names that are in use.
    """
    named: dict[str, TrainConfig] = {}
    for config in configs:
        name = _name(config, with_hook=len(hooks) > 1)
        number = 2
        base = name
        while name in named or name in taken:
            name, number = f"{base}-{number}", number + 1
        named[name] = config
    return named


def _name(config: TrainConfig, *, with_hook: bool) -> str:
    parts = [config.recipe.name]
    if (k := getattr(config.recipe, "k", None)) is not None:
        parts.append(f"k{k:g}")
    parts += [f"f{config.width}", f"s{config.seed}"]
    if config.lr != config.recipe.default_lr(config.width, config.first_steps):
        parts.append(f"lr{config.lr:g}")
    if with_hook:
        parts += [_folder_part(hook) for hook in config.all_hooks]
    return "-".join(parts)


def _folder_part(hook: str) -> str:
    return re.sub(r"[^\w.]", "_", hook.removesuffix(".output"), flags=re.ASCII)
