"""A group folder: several SAEs trained on as few passes as fit into memory; more can be added later.

```
GROUP/group.json                what the members share, and which are trained together
      manifest.json             written when no member is missing
      checkpoints/pass-000/     one row of checkpoints for all members of a pass
      topk-k32-f4096-s0/        a run folder for each member
```
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saelab.activations.source import ActivationSource
from saelab.errors import DamagedFileError, UsageError
from saelab.fields import differences
from saelab.storage.files import read_json, remove_leftovers, require_free_space, write_json
from saelab.storage.lock import locked
from saelab.storage.manifest import MANIFEST_NAME, digest_of, write_manifest
from saelab.training.config import TrainConfig, train_config_from_json
from saelab.training.extend import extend_run, extends, keep_length, require_branch_point
from saelab.training.finish import is_finished
from saelab.training.memory import plan_training
from saelab.training.naming import is_member_name, name_members
from saelab.training.passes import HowToTrain, PassPlan, train_pass
from saelab.training.run import CHECKPOINTS, CONFIG, GROUP, SAE, Run
from saelab.training.single import require_empty, require_sound, size_of

FORMAT, VERSION = "saelab-group", 1
SWEPT = ("recipe", "hook", "width", "lr", "seed")
"""Fields of a configuration that may differ between the members of a group."""


@dataclass(frozen=True)
class Group:
    """What a group folder holds, finished or not."""

    path: Path
    members: dict[str, TrainConfig]
    """Configuration of each member, by the name of its folder."""
    passes: tuple[tuple[str, ...], ...]
    """The members that are trained together, in the order of the passes."""
    parked: dict[str, str]
    """Members that diverged and were left behind, with the diagnosis."""

    @classmethod
    def open(cls, path: Path | str) -> Group:
        """Read a group.

        Raises:
            DamagedFileError: The folder is no group, or its `group.json` is not sound.
        """
        path = Path(path)
        raw = read_json(path / GROUP)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise DamagedFileError(f"{path / GROUP} does not describe a group")
        if raw.get("version") != VERSION:
            raise DamagedFileError(
                f"{path / GROUP} has version {raw.get('version')!r}; this saelab reads {VERSION}: install a newer one"
            )
        if _digest(raw) != raw.get("blake2b"):
            raise DamagedFileError(f"{path / GROUP} is damaged: it does not have its own checksum")
        return cls._from_json(path, raw)

    @property
    def finished(self) -> dict[str, Run]:
        """The runs of the members that are finished."""
        return {name: Run.open(self.path / name) for name in self.members if is_finished(self.path / name)}

    def save(self) -> None:
        """Write `group.json`."""
        raw = {
            "format": FORMAT,
            "version": VERSION,
            "members": list(self.members),
            "configs": {name: config.to_json() for name, config in self.members.items()},
            "passes": [list(names) for names in self.passes],
            "parked": self.parked,
        }
        write_json(self.path / GROUP, raw | {"blake2b": _digest(raw)})

    @classmethod
    def _from_json(cls, path: Path, raw: dict[str, Any]) -> Group:
        try:
            members = {
                str(name): train_config_from_json(raw["configs"][name], f"{path / GROUP}: {name}")
                for name in raw["members"]
            }
            passes = tuple(tuple(str(name) for name in names) for names in raw["passes"])
            parked = {str(name): str(reason) for name, reason in raw["parked"].items()}
        except (KeyError, TypeError, AttributeError, UsageError) as error:
            raise DamagedFileError(f"{path / GROUP} does not describe a group ({error})") from error
        placed = [name for names in passes for name in names]
        if sorted(placed) != sorted(members) or not all(map(is_member_name, members)):
            raise DamagedFileError(f"{path / GROUP}: the passes do not hold each member once")
        return cls(path, members, passes, parked)


def train_group(
    configs: Sequence[TrainConfig], source: ActivationSource, folder: Path, how: HowToTrain | None = None
) -> Group:
    """Train several SAEs, or finish or extend the group in a folder, or add the members that it lacks.

    Args:
        configs: What to train; they may differ in recipe, hook, width, learning rate and seed.
        source: Activations of all hooks.
        folder: The group folder.
        how: How to watch, stop and resume.

    Raises:
        UsageError: A configuration cannot work, or the folder holds something else.
        Interrupted: A stop was asked for; the same call goes on.
        SaelabError: Memory or disk do not suffice, or the data are not finite.
    """
    how = how or HowToTrain()
    _require_one_setting(configs)
    for config in configs:
        require_sound(config, source, how)
    with locked(folder, "train"):
        group = _open_or_new(folder, configs)
        remove_leftovers(folder, "*", "*/*", f"*/{SAE}/*", f"{CHECKPOINTS}/*/*/*")
        group = _with_new_members(_extended(group, configs[0]), configs, source)
        _require_space(group, source)
        for number, names in enumerate(group.passes):
            if all(is_finished(folder / name) or name in group.parked for name in names):
                continue
            (folder / MANIFEST_NAME).unlink(missing_ok=True)
            parked = train_pass(_pass_plan(group, number), source, how, on_ready=group.save)
            group = replace(group, parked=group.parked | parked)
            group.save()
        if not (folder / MANIFEST_NAME).exists():
            write_manifest(folder, "group", [GROUP], {"members": list(group.members)})
    return group


def plan_group(
    configs: Sequence[TrainConfig], source: ActivationSource, folder: Path | None = None
) -> tuple[Group, tuple[tuple[str, ...], ...]]:
    """Return the group as it would become, and those of its passes that are still to be trained.

    Raises:
        SaelabError: One SAE alone does not fit into memory.
    """
    _require_one_setting(configs)
    group = Group(folder or Path(), {}, (), {})
    if folder is not None and (folder / GROUP).exists():
        group = Group.open(folder)
        _require_same_setting(group, configs[0])
    group = _with_new_members(group, configs, source)
    return group, tuple(
        names for names in group.passes if not all(is_finished(group.path / name) for name in names)
    )


def _open_or_new(folder: Path, configs: Sequence[TrainConfig]) -> Group:
    if (folder / GROUP).exists():
        group = Group.open(folder)
        _require_same_setting(group, configs[0])
        return group
    if (folder / CONFIG).exists():
        raise UsageError(f"{folder} holds a single run, which cannot become a group; choose another folder")
    require_empty(folder)
    return Group(folder, {}, (), {})


def _require_one_setting(configs: Sequence[TrainConfig]) -> None:
    for config in configs[1:]:
        if found := differences(_setting(configs[0]), _setting(config)):
            raise UsageError(
                f"the SAEs of a group may differ in {', '.join(SWEPT)} only, not in {'; '.join(found)}"
            )


def _require_same_setting(group: Group, config: TrainConfig) -> None:
    saved = next(iter(group.members.values()))
    same = replace(saved, **{name: getattr(config, name) for name in SWEPT})
    if same != config and not extends(config, same):
        found = differences(_setting(saved), _setting(config))
        raise UsageError(
            f"{group.path} holds a group of another configuration ({'; '.join(found)}); "
            "choose another folder, or give the same options"
        )


def _setting(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_json().items() if name not in SWEPT}


def _extended(group: Group, wanted: TrainConfig) -> Group:
    """Make every member as long as is asked for; the shorter runs are kept."""
    if not group.members or (saved := next(iter(group.members.values()))).lengths == wanted.lengths:
        return group
    for number, names in enumerate(group.passes):
        require_branch_point(group.path / CHECKPOINTS / _pass_name(number), saved.branch_steps[-1])
        for name in names:
            keep_length(group.path / name, group.members[name])
    longer = {name: config.extended(wanted.tokens) for name, config in group.members.items()}
    for number, names in enumerate(group.passes):
        for name in names:
            if name not in group.parked:
                checkpoints = group.path / CHECKPOINTS / _pass_name(number)
                extend_run(group.path / name, checkpoints, group.members[name], longer[name])
    extended = replace(group, members=longer)
    extended.save()
    return extended


def _with_new_members(group: Group, configs: Sequence[TrainConfig], source: ActivationSource) -> Group:
    """Add the configurations that the group lacks, on passes of their own."""
    missing = [config for config in dict.fromkeys(configs) if config not in group.members.values()]
    if not missing:
        return group
    new = name_members(missing, [hook.module_path for hook in source.hooks], taken=set(group.members))
    passes = plan_training(new, source).passes
    return replace(group, members=group.members | new, passes=group.passes + passes)


def _require_space(group: Group, source: ActivationSource) -> None:
    todo: Mapping[str, TrainConfig] = {
        name: config
        for name, config in group.members.items()
        if name not in group.parked and not is_finished(group.path / name)
    }
    if todo:
        needed = plan_training(todo, source).disk_bytes
        require_free_space(group.path, needed - size_of(group.path / CHECKPOINTS), "training")


def _pass_plan(group: Group, number: int) -> PassPlan:
    names = group.passes[number]
    return PassPlan(
        members={name: group.members[name] for name in names},
        folders={name: group.path / name for name in names},
        checkpoints=group.path / CHECKPOINTS / _pass_name(number),
        may_park=len(group.members) > 1,
    )


def _pass_name(number: int) -> str:
    return f"pass-{number:03d}"


def _digest(raw: dict[str, Any]) -> str:
    body = {key: value for key, value in raw.items() if key != "blake2b"}
    return digest_of(json.dumps(body, sort_keys=True).encode())
