"""Pools of activations made while training: whole documents through the model, until there are enough rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from saelab.activations.harvest import Harvester
from saelab.activations.packed import pack_for
from saelab.activations.spec import LiveConfig
from saelab.errors import SaelabError
from saelab.lm.hooks import Hookpoint
from saelab.lm.load import LanguageModel
from saelab.text.documents import Document
from saelab.text.load import iter_documents
from saelab.text.packing import TokenSequences
from saelab_kernels.shapes import Float, Int, Tensor

LONGEST_EXCESS = 1_000_000
"""Rows by which a pool may be larger than was asked for, because it ends with a document."""


@dataclass(frozen=True, kw_only=True)
class PoolStart:
    """Where a pool begins: with it alone the pool is made again."""

    epoch: int = 0
    """Passes over the text that were finished before."""
    number: int = 0
    """Pools before it in the same pass."""
    document: int = 0
    """Number of its first document in the text, both splits counted."""


@dataclass(frozen=True, kw_only=True)
class LivePool:
    """The kept rows of some training documents, in document order."""

    start: PoolStart
    """Where it begins."""
    after: PoolStart
    """Where the next one begins."""
    x: dict[str, Float[Tensor, "n d_in"]]
    """Activations by module path, rounded to the stream's dtype, on the CPU."""
    gradients: dict[str, Float[Tensor, "n d_in"]]
    """Gradients alike; empty unless asked for."""
    token_index: Int[Tensor, " n"]
    """Position of each row's token among the tokens of the pool."""
    document: Int[Tensor, " n"]
    """Number of each row's document in the text."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.token_index)


class PoolStopped(Exception):
    """The making of a pool was given up because nobody wants it any more."""


class PoolMaker:
    """Makes pools from their starts; each is a function of its start, the text and the model.

    Args:
        lm: The model.
        hookpoints: Where activations are read.
        config: Text, packing, masks, dtype and the size of a pool.
    """

    def __init__(self, lm: LanguageModel, hookpoints: Sequence[Hookpoint], config: LiveConfig) -> None:
        self.lm, self.hookpoints, self.config = lm, tuple(hookpoints), config
        self.norm_limits: dict[Hookpoint, float] | None = None
        self._reader: _DocumentReader | None = None

    def make(
        self,
        start: PoolStart,
        stopped: Callable[[], bool] = lambda: False,
        advance: Callable[[int], None] = lambda rows: None,
    ) -> LivePool:
        """Run the documents of a pool through the model.

        Args:
            start: Where it begins.
            stopped: Looked at between batches.
            advance: Told the rows of each batch that is done.

        Raises:
            SaelabError: The text has no training document with tokens that are kept, or one of over a million
                too many, or an activation is not finite.
            PoolStopped: ``stopped`` said so.
        """
        empty_pass = start.epoch
        while True:
            sequences, end = self._pack(start)
            if sequences is None:  # the end of the text
                if start.document == 0 or start.epoch > empty_pass:
                    raise SaelabError(
                        f"{self.config.text.source} has no training document with tokens that are kept"
                    )
                start = PoolStart(epoch=start.epoch + 1)
                continue
            pool = self._harvest(sequences, start, end, stopped, advance)
            if pool.n_rows:
                return pool
            start = pool.after

    def _harvest(
        self,
        sequences: TokenSequences,
        start: PoolStart,
        end: int,
        stopped: Callable[[], bool],
        advance: Callable[[int], None],
    ) -> LivePool:
        harvester = Harvester(self.lm, self.hookpoints, sequences, self.config, self.norm_limits)
        self.norm_limits = harvester.norm_limits  # of the first pool: the same for the whole stream
        batches = []
        for batch in range(harvester.n_batches):
            if stopped():
                raise PoolStopped
            batches.append(harvester.harvest(batch))
            advance(len(batches[-1].token_index))
        token_index = torch.cat([batch.token_index for batch in batches])
        numbers = np.array([int(name) for name in sequences.documents.ids])
        return LivePool(
            start=start,
            after=replace(start, number=start.number + 1, document=end),
            x={hp.module_path: torch.cat([b.activations[hp] for b in batches]) for hp in self.hookpoints},
            gradients={
                hp.module_path: torch.cat([b.gradients[hp] for b in batches])
                for hp in (self.hookpoints if self.config.gradients else ())
            },
            token_index=token_index,
            document=torch.from_numpy(numbers[sequences.document_of_token(token_index.numpy())]),
        )

    def _pack(self, start: PoolStart) -> tuple[TokenSequences | None, int]:
        """Pack whole training documents from a start on; return them and the number of the next document."""
        if self._reader is None or self._reader.next_number != start.document:
            self._reader = _DocumentReader(self.config, start.document)
        reader = self._reader
        first = reader.peek()
        if first is None:
            self._reader = None
            return None, start.document
        sequences = pack_for(self.config, self.lm, reader.read(), whole_documents_of=self.config.pool_rows)
        if sequences is None:  # documents without tokens to the end of the text
            self._reader = None
            return None, reader.next_number
        last = int(sequences.documents.ids[-1])
        if int(sequences.keep.sum()) > self.config.pool_rows + LONGEST_EXCESS:
            raise SaelabError(
                f"{self.config.text.source}: document {last} is so long that a pool of {self.config.pool_rows:,} rows "
                f"would hold {int(sequences.keep.sum()):,}; cut it into documents, or cache the text to a store"
            )
        reader.give_back_after(last)
        return sequences, reader.next_number


class _DocumentReader:
    """Training documents one after the other, their ids replaced by their numbers; what was read too far goes back."""

    def __init__(self, config: LiveConfig, start: int) -> None:
        self.next_number = start
        self._numbered = enumerate(iter_documents(config.text, start=start), start)
        self._waiting: deque[Document] = deque()
        self._read: list[Document] = []

    def peek(self) -> Document | None:
        """Return the next document without reading it."""
        if not self._waiting:
            for number, document in self._numbered:
                if document.split == "train":
                    self._waiting.append(replace(document, id=str(number)))
                    break
        return self._waiting[0] if self._waiting else None

    def read(self) -> Iterator[Document]:
        """Yield the documents that come next."""
        self._read = []
        while self.peek() is not None:
            self._read.append(self._waiting.popleft())
            yield self._read[-1]

    def give_back_after(self, number: int) -> None:
        """Take back the documents that were read after a number; the next reading begins with them."""
        self._waiting.extendleft(d for d in reversed(self._read) if int(d.id) > number)
        self.next_number = number + 1
