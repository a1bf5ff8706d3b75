"""What an index is made of: rows of tokens, and what an SAE reads there, from a store or straight from the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saelab.activations.harvest import Harvester
from saelab.activations.rows import joined
from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.evaluation.places import Places, read_rows
from saelab.storage.manifest import digest_of
from saelab.text.packing import DocumentTable, TokenSequences
from saelab_kernels.shapes import Float, Int, Tensor


@dataclass(frozen=True)
class Stretch:
    """Some rows of tokens, and the rows of activations that their kept tokens have."""

    first_sequence: int
    """Number of the first row of tokens."""
    last_sequence: int
    """Number behind the last one."""
    first_row: int
    """Number of the first activation row."""
    last_row: int
    """Number behind the last one."""


class Corpus(ABC):
    """The tokens that are indexed, training and held-out documents alike.

    Args:
        sequences: Tokens, rows, kept tokens and documents.
        tokenizer_hash: Of the tokenizer that made them.
        n_rows: Rows of tokens that are taken.
        together: Rows of tokens that are read together.
    """

    def __init__(
        self, sequences: TokenSequences, tokenizer_hash: str | None, n_rows: int, together: int = 1
    ) -> None:
        self._together = together
        self.row_starts: NDArray[np.int64] = np.array(sequences.row_starts[: n_rows + 1])
        """Where each row of tokens starts, and at the end the number of tokens."""
        self.n_tokens = int(self.row_starts[-1])
        self.tokens: NDArray[np.int32] = sequences.tokens[: self.n_tokens]
        self.keep: NDArray[np.bool_] = sequences.keep[: self.n_tokens]
        self.roles = None if sequences.roles is None else sequences.roles[: self.n_tokens]
        """Role of every token, of conversations."""
        self.documents = _first_documents(sequences.documents, self.n_tokens)
        """The documents, the last one cut where the tokens end."""
        self.span_starts: NDArray[np.int64] = np.union1d(self.row_starts, self.documents.starts)
        """Where each span of one document within one row starts, and at the end the number of tokens."""
        kept = np.concatenate([[0], np.cumsum(self.keep, dtype=np.int64)])
        self.n_kept = int(kept[-1])
        """Kept tokens: what densities are shares of."""
        self._kept_ends: NDArray[np.int64] = kept[self.row_starts[1:]]
        parts = (
            np.asarray(self.row_starts, dtype="<i8").tobytes(),
            np.asarray(self.tokens, dtype="<i4").tobytes(),
            np.packbits(self.keep).tobytes(),
        )
        self.digest = digest_of(str(tokenizer_hash).encode() + b"".join(parts))
        """Of tokenizer, tokens, rows and masks: equal for equal text at any hookpoint."""

    @abstractmethod
    def activations(
        self, stretch: Stretch
    ) -> Iterator[tuple[Float[Tensor, "rows d_in"], Int[Tensor, " rows"]]]:
        """Yield what the SAE reads in a stretch, some thousand rows at a time, with the tokens' positions."""

    def document_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the document of each token position."""
        return np.searchsorted(self.documents.starts, positions, side="right") - 1

    def row_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the row of tokens of each token position."""
        return np.searchsorted(self.row_starts, positions, side="right") - 1

    def span_of(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first position of each token's document within its row, and the one behind the last."""
        span = np.searchsorted(self.span_starts, positions, side="right") - 1
        return self.span_starts[span], self.span_starts[span + 1]

    def first_rows(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first activation row of rows of tokens; where one keeps nothing, that of the next."""
        return np.where(sequences > 0, self._kept_ends[sequences - 1], 0)

    def stretches(self, kept: int, within: Stretch | None = None) -> list[Stretch]:
        """Cut the corpus into whole rows of tokens, each stretch ending with the rows that fill it with ``kept``.

        A longer corpus begins with the same stretches but for the last one. A stretch can be cut further: ``within``.
        """
        ends = self._kept_ends
        whole = within or Stretch(0, len(ends), 0, self.n_kept)
        found, first, n, before = [], whole.first_sequence, whole.last_sequence, whole.first_row
        while first < n:
            full = int(np.searchsorted(ends, before + kept)) + 1
            last = min(-(-full // self._together) * self._together, n)
            found.append(Stretch(first, last, before, int(ends[last - 1])))
            first, before = last, int(ends[last - 1])
        return found


class StoreCorpus(Corpus):
    """The first rows of tokens of an activation store.

    Args:
        store: Has tokens, and the hookpoints that the SAE reads.
        places: Those hookpoints.
        max_kept: Kept tokens at most, in whole rows of tokens; at least one row. 0 for all.

    Raises:
        UsageError: The store has no tokens.
    """

    READ_ROWS = 16_384

    def __init__(self, store: Store, places: Places, max_kept: int = 0) -> None:
        if not store.has_tokens:
            raise UsageError(
                f"index: {store.path} holds activations without tokens; an index shows features in their text"
            )
        sequences = store.sequences
        n_rows = sequences.n_rows
        if max_kept:
            ends = np.cumsum(sequences.keep, dtype=np.int64)[sequences.row_starts[1:] - 1]
            n_rows = max(1, int(np.searchsorted(ends, max_kept, side="right")))
        super().__init__(sequences, store.tokenizer_hash, n_rows)
        self._store, self._places = store, Places(places.inputs, places.inputs)

    def activations(
        self, stretch: Stretch
    ) -> Iterator[tuple[Float[Tensor, "rows d_in"], Int[Tensor, " rows"]]]:
        for start in range(stretch.first_row, stretch.last_row, self.READ_ROWS):
            stop = min(start + self.READ_ROWS, stretch.last_row)
            rows = read_rows(self._store, self._places, None, start, stop)
            yield rows.x, rows.token_index


class LiveCorpus(Corpus):
    """Packed text that is read by the model whenever its activations are needed: nothing of them is stored.

    Args:
        harvester: The model, the text and the hookpoints.
        places: What the SAE reads.

    Raises:
        UsageError: Tokens are masked by their norm, which is known only after reading them.
    """

    def __init__(self, harvester: Harvester, places: Places) -> None:
        if harvester.config.mask_norm_ratio is not None:
            raise UsageError(
                "index: the run's text is masked by norms (mask_norm_ratio), so its tokens are known only once it is "
                "cached; cache it, and index the store with --store"
            )
        sequences = harvester.sequences
        tokenizer_hash = harvester.lm.identity.tokenizer_hash
        super().__init__(sequences, tokenizer_hash, sequences.n_rows, harvester.config.batch_rows)
        self._harvester = harvester
        by_path = {hookpoint.module_path: hookpoint for hookpoint in harvester.hookpoints}
        self._hookpoints = [by_path[path] for path in places.inputs]

    def activations(
        self, stretch: Stretch
    ) -> Iterator[tuple[Float[Tensor, "rows d_in"], Int[Tensor, " rows"]]]:
        size = self._harvester.config.batch_rows
        for batch in range(stretch.first_sequence // size, -(-stretch.last_sequence // size)):
            found = self._harvester.harvest(batch)
            x = joined([found.activations[hookpoint] for hookpoint in self._hookpoints])
            yield x.float(), found.token_index


def _first_documents(table: DocumentTable, n_tokens: int) -> DocumentTable:
    n = int(np.searchsorted(table.starts, n_tokens))
    starts = table.starts[:n]
    return DocumentTable(
        ids=table.ids[:n],
        starts=starts,
        lengths=np.diff(starts, append=n_tokens),
        sources=table.sources[:n],
        heldout=table.heldout[:n],
        columns={name: values[:n] for name, values in table.columns.items()},
    )
