"""Read an SAE of any known format: find the format, read it, and make it one of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saelab.errors import UsageError
from saelab.interop.adopt import Belonging, adopt
from saelab.interop.answers import Answers
from saelab.interop.foreign import ForeignSAE
from saelab.interop.formats import READERS, detect, reader
from saelab.interop.hooks import spelled_without_model
from saelab.interop.locations import Location, locate
from saelab.interop.reading import Reading
from saelab.sae.autoencoder import SparseAutoencoder

UNKNOWN = "unknown"
"""Name of a place or a model that neither the files nor the user told."""


@dataclass(frozen=True)
class Found:
    """A foreign SAE and where it was found."""

    foreign: ForeignSAE
    format: str
    location: Location
    answers: Answers

    @property
    def hook(self) -> str | None:
        """What it reads, as the user or its files say; None where nobody does."""
        return self.answers.at or self.foreign.place.hook

    @property
    def target_hook(self) -> str | None:
        """What it reconstructs, where that is another place."""
        return self.answers.target_at or self.foreign.place.target_hook


def read_foreign(
    where: str | Path | Location,
    *,
    format: str | None = None,
    answers: Answers | None = None,
    allow_pickle: bool = False,
) -> Found:
    """Read an SAE in its own terms.

    Args:
        where: A folder, a file, or ``hf://owner/name[@revision]/path``.
        format: One of `READERS`; found from the files where not given.
        answers: What the user says of it; what the files say is never overruled.
        allow_pickle: Whether `.pt` files may be read.

    Raises:
        UsageError: The format cannot be told, or something that decides what the SAE computes is not said anywhere.
        DamagedFileError: The files are not sound.
    """
    location, answers = where if isinstance(where, Location) else locate(where), answers or Answers()
    format = format or detect(location)
    if format is None:
        raise UsageError(
            f"{location} has no format that is known ({', '.join(READERS)}); name one with --from"
        )
    foreign = reader(format).read(Reading(location, answers, allow_pickle))
    return Found(foreign, format, location, answers)


def load_foreign(found: Found) -> SparseAutoencoder:
    """Return a foreign SAE as one of ours, with the places that names alone tell."""
    model = found.foreign.place.model
    hook, alias = spelled_without_model(found.hook or UNKNOWN, model)
    target = found.target_hook
    if found.foreign.is_transcoder:
        target = spelled_without_model(target, model)[0] if target else f"{UNKNOWN} target"
    belonging = Belonging(hook=hook, alias=alias, target_hook=target, model_name=model or UNKNOWN)
    return adopt(found.foreign, belonging)
