"""A member of a group that diverges is left behind: its last good state is kept, the others go on."""

from __future__ import annotations

from pathlib import Path

from saelab.storage.files import link_or_copy, write_json
from saelab.training.checkpoints import tensors_name
from saelab.training.member import Member

PARKED = "parked.json"
LAST_GOOD = "last_good.safetensors"


def park(member: Member, reason: str, checkpoint: Path | None) -> None:
    """Write down why a member was left behind, with its state in the last checkpoint, if it has one.

    Args:
        member: The member that has diverged.
        reason: The diagnosis.
        checkpoint: The last checkpoint of the pass, before the divergence.
    """
    saved = None if checkpoint is None else checkpoint / tensors_name(member.name)
    if saved is not None and saved.exists():
        link_or_copy(saved, member.folder / LAST_GOOD)
    facts = {"step": member.step, "reason": reason, "last_good": saved.parent.name if saved else None}
    write_json(member.folder / PARKED, facts)


def unpark(folder: Path) -> None:
    """Remove what was written when a member was left behind that is finished after all."""
    for name in (PARKED, LAST_GOOD):
        (folder / name).unlink(missing_ok=True)
