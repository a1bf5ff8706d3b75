"""Make a run longer: go on from where its learning rate began to fall, with a new fall at the new end.

The shorter run is kept, whole, in `lengths/tokens-N` inside the run folder. What the extended run
computes is what a run of the same configuration (``tokens`` and ``extended_from``) computes from the
start, bit for bit.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from saelab.errors import UsageError
from saelab.storage.files import link_or_copy, write_json
from saelab.storage.manifest import MANIFEST_NAME, read_manifest, write_manifest
from saelab.training.checkpoints import (
    Resume,
    finished_checkpoints,
    latest_checkpoint,
    remove_later_than,
    require_same_arithmetic,
)
from saelab.training.config import TrainConfig
from saelab.training.run import CHECKPOINTS, CONFIG, LENGTHS

_NOT_KEPT = (CHECKPOINTS, LENGTHS, ".lock")
_APPENDED = (".jsonl",)
_MADE_OF_THE_SAE = ("evaluations", "indexes", "dark_matter")


def extends(config: TrainConfig, saved: TrainConfig) -> bool:
    """Whether a configuration is a saved one made longer."""
    is_longer = config.extended_from == saved.lengths
    return is_longer and replace(config, tokens=saved.tokens, extended_from=saved.extended_from) == saved


def extend_run(folder: Path, checkpoints: Path, saved: TrainConfig, config: TrainConfig) -> None:
    """Turn the run in a folder into an unfinished one of a longer configuration.

    Every step can be repeated: a crash anywhere leaves a run that the same call extends. Call
    `require_extendable` first.
    """
    keep_length(folder, saved)
    remove_later_than(checkpoints, saved.branch_steps[-1])
    # Without its manifest and before its configuration is written it is an unfinished run of the
    # shorter length, which this call extends again.
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for name in _MADE_OF_THE_SAE:  # they tell of the shorter run's SAE, beside which they have been kept
        shutil.rmtree(folder / name, ignore_errors=True)
    write_json(folder / CONFIG, config.to_json())


def require_extendable(checkpoints: Path, folder: Path, saved: TrainConfig, resume: Resume) -> None:
    """Refuse, before anything is changed, what cannot go on from its branch point with the same bits.

    Raises:
        UsageError: The checkpoint from which it would go on is not there any more.
        SaelabError: It was computed with other threads or kernels.
    """
    branch = saved.branch_steps[-1]
    checkpoint = latest_checkpoint(checkpoints, up_to=branch)
    if checkpoint is not None:
        require_same_arithmetic(folder, checkpoint, saved.device, resume)
    elif finished_checkpoints(checkpoints) or (folder / MANIFEST_NAME).exists():
        raise UsageError(
            f"{checkpoints} has no checkpoint at step {branch:,} or before it, where the learning rate began to "
            "fall: this run cannot be extended; start a new one with --init-from"
        )


def keep_length(folder: Path, saved: TrainConfig) -> None:
    """Keep a finished run as it is in `lengths/tokens-N`, before it is extended."""
    place = folder / LENGTHS / f"tokens-{saved.tokens}"
    if not (folder / MANIFEST_NAME).exists() or (place / MANIFEST_NAME).exists():
        return
    shutil.rmtree(place, ignore_errors=True)
    manifest = read_manifest(folder, "run")
    for source in sorted(folder.rglob("*")):
        name = source.relative_to(folder)
        if source.is_file() and name.parts[0] not in _NOT_KEPT and str(name) != MANIFEST_NAME:
            if source.suffix in _APPENDED:  # a second name would grow with the run
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, place / name)
            else:
                link_or_copy(source, place / name)
    content = dict(manifest.content)
    if isinstance(content.get("store"), str):  # relative to the run, which lies two folders deeper now
        content["store"] = f"../../{content['store']}"
    write_manifest(place, "run", [], content, manifest.files)
