"""What an export of an index is told. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from saelab.errors import UsageError
from saelab.features.labels.neuronpedia import CREATOR, EPOCH, is_date

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class IndexExportOptions:
    """Names in the other tool, and how much is written."""

    model_id: str = ""
    """What it calls the language model; where empty, the last part of the model's name in small letters."""
    layer: int | None = None
    """Layer of the SAE; None for the number in the name of its hookpoint."""
    sae_set: str = "saelab"
    """Name of the set of SAEs that this one belongs to."""
    suffix: str = ""
    """Tells SAEs of one layer and set apart."""
    dataset: str = ""
    """Name of the corpus; where empty, the one that the index knows."""
    creator: str = CREATOR
    """Id of the user there."""
    creator_name: str = "saelab"
    """Name that is shown."""
    visibility: Literal["PUBLIC", "UNLISTED", "PRIVATE"] = "PUBLIC"
    """Who may see it there."""
    created: str = EPOCH
    """Date of everything, ISO 8601; a fixed one where none is said, so that the same export has the same bytes."""
    batch: int = 128
    """Features of a file: so many are held in memory."""
    context: int = 32
    """Tokens on either side of an example's peak."""
    vectors: bool = True
    """Write the decoder rows too."""
    quiet: bool = False
    """Show no progress."""

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            UsageError: Naming the field.
        """
        for name in ("sae_set", "suffix", "model_id"):
            value = getattr(self, name)
            if not NAME.fullmatch(value) and (value or name == "sae_set"):
                raise UsageError(f"export: {name} is {value!r}; use letters, digits, . - and _")
        if self.layer is not None and self.layer < 0:
            raise UsageError(f"export: layer is {self.layer}")
        if self.batch < 1 or self.context < 0:
            raise UsageError(f"export: batch is {self.batch} and context {self.context}")
        if not is_date(self.created):
            raise UsageError(f"export: {self.created!r} is no date; write it as 2026-01-31T00:00:00Z")
