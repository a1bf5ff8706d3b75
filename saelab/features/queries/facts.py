"""What an index knows without a query: its manifest and its corpus."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from saelab.errors import DamagedFileError, UsageError
from saelab.features.queries.corpus import IndexedCorpus
from saelab.features.queries.opened import OpenedIndex
from saelab.features.schema import LOGIT_INVERSE, VOCABULARY
from saelab.features.spec import IndexConfig
from saelab.storage.manifest import Manifest
from saelab.text.vocabulary import Vocabulary


class IndexFacts:
    """The properties of an index.

    Args:
        opened: The checked manifest.
        run: The run that the index is of, where it is known.
    """

    def __init__(self, opened: OpenedIndex, run: Path | None) -> None:
        self._opened = opened
        self._corpus = IndexedCorpus(opened.path, opened.n_tokens, opened.n_rows, has_roles=opened.has_roles)
        self.path = opened.path
        self.run_path = run

    @property
    def manifest(self) -> Manifest:
        """Where everything in the index came from, with sizes and checksums."""
        return self._opened.manifest

    @property
    def config(self) -> IndexConfig:
        """How the index was built."""
        return self._opened.config

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self._opened.d_sae

    @property
    def n_tokens(self) -> int:
        """Kept tokens: those that densities are shares of."""
        return self._opened.n_kept

    @property
    def n_vocabulary(self) -> int:
        """Tokens of the vocabulary."""
        return self._opened.n_vocabulary

    @property
    def sae_identity(self) -> str:
        """Identity of the SAE."""
        return self._opened.sae_identity

    @property
    def source(self) -> str:
        """What the index was made from, in one line."""
        return self._opened.source

    def has(self, part: str) -> bool:
        """Whether a part is there: one of `saelab.features.spec.PARTS`, or ``codes``, or ``logits``."""
        if part == "codes":
            return bool(self._opened.code_shards)
        return LOGIT_INVERSE in self._opened.tables if part == "logits" else part in self._opened.parts

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the tokenizer, as bytes and as text; DamagedFileError where the table is not sound."""
        path = self.path / VOCABULARY
        try:
            return Vocabulary.from_table(pq.read_table(path))
        except (OSError, pa.ArrowException, UsageError) as error:
            raise DamagedFileError(f"cannot read {path}: {str(error).splitlines()[0]}") from error

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Ids of all tokens of the corpus, kept or not."""
        return self._corpus.tokens

    @property
    def row_starts(self) -> NDArray[np.int64]:
        """Where each row of tokens starts, and at the end the number of tokens."""
        return self._corpus.row_starts

    @property
    def keep(self) -> NDArray[np.bool_]:
        """Whether each token was looked at."""
        return self._corpus.keep

    @property
    def roles(self) -> NDArray[np.uint8] | None:
        """Role of every token of conversations, a code of `saelab.text.chat.ROLES`, + 128 where special, else None."""
        return self._corpus.roles

    @property
    def documents(self) -> pa.Table:
        """The documents: id, start, length, source, split, and whatever columns were kept."""
        return self._corpus.documents

    def row_of(self, position: int) -> int:
        """Return the row of tokens that holds a position; UsageError where there is none."""
        return self._corpus.row_of(position)

    def document_of(self, position: int) -> int:
        """Return the number of the document that a position belongs to; UsageError where there is none."""
        return self._corpus.document_of(position)
