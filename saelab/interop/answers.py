"""What a user says of an SAE where its files are silent. Imports no torch: the command line shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from saelab.errors import UsageError

ActivationName = Literal["relu", "topk", "jumprelu"]
NormalisationName = Literal["none", "layer_norm", "unit_norm"]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Facts that decide what an SAE computes, and its places; None where nothing was said.

    What the files say is never overruled, but for the names of places.
    """

    activation: ActivationName | None = None
    """What happens to pre-activations."""
    k: int | None = None
    """Features kept for a token, with the activation topk."""
    b_dec_on_input: bool | None = None
    """Whether the encoder sees ``x - b_dec``."""
    normalisation: NormalisationName | None = None
    """How each token was scaled before the encoder."""
    scale: float | None = None
    """Number that all activations were multiplied by before the encoder, and reconstructions divided by."""
    rows: Literal["inputs", "features"] | None = None
    """What the rows of a square encoder matrix stand for."""
    at: str | None = None
    """Hookpoint that it reads, in either spelling."""
    target_at: str | None = None
    """Hookpoint that it reconstructs, where that is another one."""

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise UsageError(f"--k must be at least 1, not {self.k}")
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise UsageError(f"--scale must be a number above 0, not {self.scale}")

    def given(self) -> dict[str, Any]:
        """Return what was said, as plain JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def question(where: object, what: str, answer: str) -> UsageError:
    """Return the error for a fact that the files do not tell and that is not guessed.

    Args:
        where: Whose files.
        what: What is not known, as a clause.
        answer: The option that answers it.
    """
    return UsageError(f"{where}: {what}; say it with {answer}")
