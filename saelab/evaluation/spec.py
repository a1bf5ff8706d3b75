"""What an evaluation is asked to do. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from saelab.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How much is evaluated, and in pieces of which size."""

    tokens: int = 65_536
    """Kept held-out tokens to evaluate at most: whole sequences in document order, at least one."""
    batch_rows: int = 8
    """Sequences in one forward pass of the language model; the last pass is filled up with blank ones."""
    tile: int = 1024
    """Tokens that the SAE sees at once; the last tile is filled up with zeros."""

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_rows", "tile"):
            if getattr(self, name) < 1:
                raise UsageError(f"evaluation: {name} is {getattr(self, name)}; it must be at least 1")
