"""Train one SAE into a run folder: started, resumed or extended by the same call, finished once, never overwritten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from saelab.activations.source import ActivationSource
from saelab.errors import UsageError
from saelab.fields import differences
from saelab.storage.files import WRITING_SUFFIX, remove_leftovers, require_free_space
from saelab.storage.lock import LOCK_NAME, locked
from saelab.training.config import TrainConfig
from saelab.training.extend import extend_run, extends, require_extendable
from saelab.training.finish import is_finished
from saelab.training.loggers import LOGS
from saelab.training.memory import plan_training
from saelab.training.passes import HowToTrain, PassPlan, train_pass
from saelab.training.run import CHECKPOINTS, CONFIG, GROUP, SAE, Run, read_config
from saelab.training.warm_start import require_warm_start

STATE = "state"
"""What a checkpoint calls the one member of a run."""


def train_run(
    config: TrainConfig, source: ActivationSource, folder: Path, how: HowToTrain | None = None
) -> Run:
    """Train an SAE, or finish an interrupted run of the same configuration, or extend a shorter one.

    Args:
        config: What to train.
        source: Activations; their identity must be the one in the configuration.
        folder: The run folder. A finished run of the same configuration is returned as it is; one
            that ``config`` extends goes on from where its learning rate began to fall.
        how: How to watch, stop and resume.

    Raises:
        UsageError: The configuration cannot work, or the folder holds a run of another one.
        Interrupted: A stop was asked for; the same call goes on.
        SaelabError: Memory or disk do not suffice, the data are not finite, or the loss diverged.
    """
    how = how or HowToTrain()
    require_sound(config, source, how)
    plan = plan_training({STATE: config}, source)
    with locked(folder, "train"):
        _require_own_folder(folder, config, source)
        remove_leftovers(folder, "*", f"{SAE}/*", f"{CHECKPOINTS}/*/*")
        saved = saved_config(folder)
        if saved != config or not is_finished(folder):
            require_free_space(folder, plan.disk_bytes - size_of(folder), "training")
            if saved is not None and saved != config:
                require_extendable(folder / CHECKPOINTS, folder, saved, how.resume)
                source.prepare(how.stop, quiet=how.quiet)  # the last that may be refused or stopped
                extend_run(folder, folder / CHECKPOINTS, saved, config)
            train_pass(
                PassPlan(members={STATE: config}, folders={STATE: folder}, checkpoints=folder / CHECKPOINTS),
                source,
                how,
            )
    return Run.open(folder)


def require_sound(config: TrainConfig, source: ActivationSource, how: HowToTrain) -> None:
    """Refuse a configuration that cannot work or does not belong to the source.

    Raises:
        UsageError: Naming the value.
    """
    config.check()
    if source.identity != config.source_identity:
        raise UsageError(
            f"the activations are not those that the configuration names ({config.source_identity}); "
            f"theirs is {source.identity}"
        )
    require_warm_start(how.warm, config, source)
    if config.recipe.traits.loss_gradients:
        for hook in map(source.hook, config.target_hooks):
            if not hook.has_gradients:
                raise UsageError(
                    f"{config.recipe.name} ranks by gradients of the model's loss, and the activations at "
                    f"{hook.alias or hook.module_path} have none: cache them with --gradients "
                    "(a live source in Python: gradients=True)"
                )


def saved_config(folder: Path) -> TrainConfig | None:
    """Return the configuration of the run in a folder, finished or not; None where there is none."""
    return read_config(folder) if (folder / CONFIG).exists() else None


def size_of(folder: Path) -> int:
    """Return the size of everything in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _require_own_folder(folder: Path, config: TrainConfig, source: ActivationSource) -> None:
    """Refuse a folder that holds anything but a run of this configuration or a shorter one, before touching it."""
    if (folder.parent / GROUP).exists() and (folder / CONFIG).exists():
        raise UsageError(
            f"{folder} belongs to the group {folder.parent}; give the group's folder and its options"
        )
    if (saved := saved_config(folder)) is not None:
        if saved != config and not extends(config, saved):
            raise another_configuration(f"{folder} holds a run", saved, config, source)
        return
    require_empty(folder)


def another_configuration(
    what: str, saved: TrainConfig, wanted: TrainConfig, source: ActivationSource
) -> UsageError:
    """Return the error for a folder whose configuration is not the one that is asked for.

    Args:
        what: What is there, for example ``runs/a holds a run``.
        saved: Its configuration, as far as it counts.
        wanted: What is asked for.
        source: Where the activations come from now.
    """
    if saved.source_identity in source.earlier_identities:
        return UsageError(
            f"{what} that was trained on the store before it was extended; choose another folder, perhaps with "
            "--init-from, or cache the shorter store again elsewhere"
        )
    if (
        wanted.tokens < saved.tokens
        and replace(wanted, tokens=saved.tokens, extended_from=saved.extended_from) == saved
    ):
        return UsageError(
            f"{what} of {saved.tokens:,} tokens, which cannot become one of {wanted.tokens:,}; choose another folder"
        )
    found = differences(saved.to_json(), wanted.to_json())
    return UsageError(
        f"{what} of another configuration ({'; '.join(found)}); choose another folder, or give the same options"
    )


def require_empty(folder: Path) -> None:
    """Refuse a folder that holds anything of somebody else's.

    Raises:
        UsageError: Naming some of what is there.
    """
    known = {LOCK_NAME, CONFIG + WRITING_SUFFIX, GROUP + WRITING_SUFFIX, LOGS}
    if strangers := sorted(path.name for path in folder.iterdir() if path.name not in known):
        raise UsageError(f"{folder} holds other files ({', '.join(strangers[:3])}); choose a new folder")
