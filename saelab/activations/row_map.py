"""Which activation rows belong to which split: rows follow the documents, a split is a set of stretches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saelab.text.documents import Split
from saelab.text.packing import DocumentTable


class RowMap:
    """Maps positions within a split to rows of the store."""

    def __init__(self, keep: NDArray[np.bool_], documents: DocumentTable) -> None:
        kept: NDArray[np.int64] = np.add.reduceat(keep, documents.starts, dtype=np.int64)
        self._of_documents = {"train": kept[~documents.heldout], "heldout": kept[documents.heldout]}
        ends = np.cumsum(kept)
        self.n_rows = int(ends[-1])
        # Neighbouring documents of one split form one stretch.
        last = np.append(documents.heldout[1:] != documents.heldout[:-1], True)
        stretch_ends = ends[last]
        stretch_starts = np.append(0, stretch_ends[:-1])
        heldout = documents.heldout[last]
        self._stretches = {
            "train": (stretch_starts[~heldout], stretch_ends[~heldout]),
            "heldout": (stretch_starts[heldout], stretch_ends[heldout]),
        }
        self._before = {
            split: np.append(0, np.cumsum(ends - starts)) for split, (starts, ends) in self._stretches.items()
        }

    def count(self, split: Split | None) -> int:
        """Return the number of rows of a split; of both for None."""
        return self.n_rows if split is None else int(self._before[split][-1])

    def rows_of_documents(self, split: Split) -> NDArray[np.int64]:
        """Return the number of rows of each document of a split, in document order."""
        return self._of_documents[split]

    def pieces(self, split: Split | None, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the stretches of store rows that hold rows `start` to `stop` of a split (None: of both), in order."""
        if split is None:
            return [(start, stop)] if stop > start else []
        starts, _ = self._stretches[split]
        before = self._before[split]
        first = int(np.searchsorted(before, start, side="right")) - 1
        pieces = []
        while start < stop:
            end = min(stop, int(before[first + 1]))
            if end > start:
                shift = int(starts[first]) - int(before[first])
                pieces.append((start + shift, end + shift))
                start = end
            first += 1
        return pieces

    def pieces_within(self, split: Split, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the stretches of a split's rows among the store rows `start` to `stop`."""
        starts, ends = self._stretches[split]
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(starts, stop, side="left"))
        clipped = (
            (max(start, int(a)), min(stop, int(b)))
            for a, b in zip(starts[first:last], ends[first:last], strict=True)
        )
        return [(a, b) for a, b in clipped if b > a]
