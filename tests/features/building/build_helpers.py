"""What tests of the build share: a small configuration, the world, and everything of a corpus as one matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from saelab.activations.store import Store
from saelab.features.spec import IndexConfig
from saelab.lm.load import LanguageModel
from saelab.training.run import Run

HOOK = "blocks.1.hook_resid_post"
SMALL = IndexConfig(top=6, intervals=4, per_interval=3, random=5, non_active=4, neighbors=7, window=10)


@dataclass(frozen=True)
class World:
    """A run, its model and its store."""

    run: Run
    store: Store
    lm: LanguageModel


@dataclass(frozen=True)
class Dense:
    """Everything about a corpus as one matrix."""

    values: np.ndarray
    """Activations ``[kept tokens, d_sae]``, float32."""
    positions: np.ndarray
    """Position of each kept token."""
    tokens: np.ndarray
    row_starts: np.ndarray
    document_starts: np.ndarray

    @cached_property
    def span_starts(self) -> np.ndarray:
        """Where rows and documents start, and at the end the number of tokens."""
        return np.union1d(self.row_starts, self.document_starts)

    def document(self, position: int) -> int:
        return int(np.searchsorted(self.document_starts, position, side="right")) - 1

    def span(self, position: int) -> tuple[int, int]:
        """First position of a token's document within its row of tokens, and the one behind the last."""
        after = int(np.searchsorted(self.span_starts, position, side="right"))
        return int(self.span_starts[after - 1]), int(self.span_starts[after])


def data_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of an index."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
