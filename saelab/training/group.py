"""A group folder: several SAEs trained on as few passes as fit into memory; more can be added later.

```
GROUP/group.json                what the members share, and which are trained together
      manifest.json             written when no member is missing
      checkpoints/pass-000/     one row of checkpoints for all members of a pass
      topk-k32-f4096-s0/        a run folder for each member
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saelab.activations.source import ActivationSource
from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.fields import differences
from saelab.storage.files import read_json, remove_leftovers, require_free_space, write_json
from saelab.storage.lock import locked
from saelab.storage.manifest import MANIFEST_NAME, digest_of_body, write_manifest
from saelab.training.config import TrainConfig, train_config_from_json
from saelab.training.extend import extend_run, extends, keep_length, require_extendable
from saelab.training.finish import is_finished
from saelab.training.memory import plan_training
from saelab.training.naming import is_member_name, name_members
from saelab.training.passes import HowToTrain, PassPlan, train_pass
from saelab.training.run import CHECKPOINTS, CONFIG, GROUP, SAE, Run
from saelab.training.single import another_configuration, require_empty, require_sound, size_of

FORMAT, VERSION = "saelab-group", 1
SWEPT = ("recipe", "hook", "further_hooks", "target_hook", "width", "lr", "seed", "normalisation")
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
        body = {key: value for key, value in raw.items() if key != "blake2b"}
        if digest_of_body(body) != raw.get("blake2b"):
            raise DamagedFileError(f"{path / GROUP} is damaged: it does not have its own checksum")
        return cls._from_json(path, raw)

    @property
    def finished(self) -> dict[str, Run]:
        """The runs of the members that are finished."""
        return {name: Run.open(self.path / name) for name in self.members if is_finished(self.path / name)}

    def begin_changes(self) -> None:
        """Write `group.json`; from now on the group is not complete until it has a manifest again."""
        (self.path / MANIFEST_NAME).unlink(missing_ok=True)
        self.save()

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
        write_json(self.path / GROUP, raw | {"blake2b": digest_of_body(raw)})

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
        saved = _open_or_new(folder, configs, source)
        remove_leftovers(folder, "*", "*/*", f"*/{SAE}/*", f"{CHECKPOINTS}/*/*/*")
        longer = _longer(saved, configs[0])
        group = _with_new_members(longer, configs, source)
        _require_space(saved, group, source)
        if longer is not saved:
            _extend(saved, longer, source, how)
        for number, names in enumerate(group.passes):
            if not all(is_finished(folder / name) or name in group.parked for name in names):
                parked = train_pass(_pass_plan(group, number), source, how, on_ready=group.begin_changes)
                others = {name: why for name, why in group.parked.items() if name not in names}
                group = replace(group, parked=others | parked)
                group.begin_changes()
        _require_a_finished_member(group)
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
        _require_same_setting(group, configs[0], source)
    extending = bool(group.members) and next(iter(group.members.values())).lengths != configs[0].lengths
    old = group.passes
    group = _with_new_members(_longer(group, configs[0]), configs, source)
    return group, tuple(
        names
        for names in group.passes
        if (extending and names in old)
        or not all(is_finished(group.path / name) or name in group.parked for name in names)
    )


def _open_or_new(folder: Path, configs: Sequence[TrainConfig], source: ActivationSource) -> Group:
    if (folder / GROUP).exists():
        group = Group.open(folder)
        _require_same_setting(group, configs[0], source)
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


def _require_same_setting(group: Group, config: TrainConfig, source: ActivationSource) -> None:
    saved = next(iter(group.members.values()))
    same = replace(saved, **{name: getattr(config, name) for name in SWEPT})
    if same != config and not extends(config, same):
        raise another_configuration(f"{group.path} holds a group", same, config, source)


def _setting(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_json().items() if name not in SWEPT}


def _extend(saved: Group, longer: Group, source: ActivationSource, how: HowToTrain) -> None:
    """Turn every member into an unfinished one of the longer configuration; the shorter runs are kept."""
    places = {
        name: (saved.path / name, saved.path / CHECKPOINTS / _pass_name(number))
        for number, names in enumerate(saved.passes)
        for name in names
    }
    for name, (folder, checkpoints) in places.items():
        require_extendable(checkpoints, folder, saved.members[name], how.resume)
    source.prepare(how.stop, quiet=how.quiet)  # the last that may be refused or stopped
    for name, (folder, _) in places.items():
        keep_length(folder, saved.members[name])
    (saved.path / MANIFEST_NAME).unlink(missing_ok=True)
    for name, (folder, checkpoints) in places.items():
        extend_run(folder, checkpoints, saved.members[name], longer.members[name])
    longer.save()


def _longer(group: Group, wanted: TrainConfig) -> Group:
    """Return the group with every member as long as is asked for, or the group itself where that is so."""
    if not group.members or next(iter(group.members.values())).lengths == wanted.lengths:
        return group
    longer = {name: config.extended(wanted.tokens) for name, config in group.members.items()}
    # One that diverged after the branch point may do better now; the others are parked again.
    return replace(group, members=longer, parked={})


def _with_new_members(group: Group, configs: Sequence[TrainConfig], source: ActivationSource) -> Group:
    """Add the configurations that the group lacks, on passes of their own."""
    missing = [config for config in dict.fromkeys(configs) if config not in group.members.values()]
    if not missing:
        return group
    new = name_members(missing, [hook.module_path for hook in source.hooks], taken=set(group.members))
    passes = plan_training(new, source).passes
    return replace(group, members=group.members | new, passes=group.passes + passes)


def _require_space(saved: Group, group: Group, source: ActivationSource) -> None:
    todo = {
        name: config
        for name, config in group.members.items()
        if name not in group.parked
        and not (is_finished(group.path / name) and saved.members.get(name) == config)
    }
    if todo:
        needed = plan_training(todo, source).disk_bytes
        require_free_space(group.path, needed - size_of(group.path / CHECKPOINTS), "training")


def _require_a_finished_member(group: Group) -> None:
    if len(group.parked) == len(group.members):
        reasons = "; ".join(f"{name} {reason}" for name, reason in group.parked.items())
        raise SaelabError(
            f"every SAE of the group has diverged ({reasons}); start again with lower learning rates"
        )


def _pass_plan(group: Group, number: int) -> PassPlan:
    names = group.passes[number]
    return PassPlan(
        members={name: group.members[name] for name in names},
        folders={name: group.path / name for name in names},
        checkpoints=group.path / CHECKPOINTS / _pass_name(number),
        may_park=True,
    )


def _pass_name(number: int) -> str:
    return f"pass-{number:03d}"
