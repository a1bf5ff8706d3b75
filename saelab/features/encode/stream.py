"""Encode a text with the run's own model and SAE, some documents at a time.

Documents are packed one to a row, so that what a document gives does not depend on the one before it; longer ones go
on in further rows. Masks, context and the rounding of activations are those that the SAE was trained with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

from saelab.activations.harvest import Harvester
from saelab.activations.packed import pack_rows, require_context
from saelab.activations.spec import CacheConfig, HarvestConfig
from saelab.evaluation.places import Places
from saelab.evaluation.sources import Shared, how_it_was_harvested, packing_of
from saelab.features.building.corpus import LiveCorpus
from saelab.features.building.encode import encoded
from saelab.features.codes import CodeShard
from saelab.interrupts import StopRequest
from saelab.lm.hooks import resolve_all
from saelab.lm.load import LanguageModel
from saelab.sae.autoencoder import SparseAutoencoder
from saelab.sae.model_match import require_same_model
from saelab.text.documents import Document
from saelab.text.load import iter_documents
from saelab.text.packing import NoTokensError
from saelab.text.spec import TextSpec
from saelab.training.run import Run
from saelab_kernels.code import SparseCode

DOCUMENTS, CHARACTERS = 256, 2_000_000
"""Documents and characters that are packed together, at most, but for a single longer document."""
STRETCH = 4096
"""Kept tokens whose codes are in memory at once, about."""
ALL = 2**40


@dataclass(frozen=True)
class EncodedPiece:
    """Some documents in tokens; their codes are read once."""

    corpus: LiveCorpus
    """Tokens, masks and documents."""
    shards: Iterator[CodeShard]
    """Codes; positions are those of ``corpus.tokens``."""


class TextEncoder:
    """Turns documents into codes.

    Args:
        run: A finished run.
        text: What is read.
        shared: Loads the model.
        stop: Asks for a stop.

    Raises:
        UsageError: The run's model cannot be found, or is another one now.
    """

    def __init__(self, run: Run, text: TextSpec, shared: Shared, stop: StopRequest) -> None:
        own = how_it_was_harvested(run, shared, text)
        same = {one.name: getattr(own, one.name) for one in fields(HarvestConfig)}
        sae = run.sae()
        self.places = Places(sae.config.input_hooks, sae.config.input_hooks)
        asked = {
            "text": text,
            "packing": "document" if packing_of(text, own.packing) != "conversation" else "conversation",
            "at": self.places.inputs,
            "mask_norm_ratio": None,  # a limit that hangs on the first batch of another text says nothing here
            "loss": False,
            "gradients": False,
        }
        self.config = CacheConfig(**(same | asked), tokens=ALL)
        self.lm: LanguageModel = shared.model(own.model)
        require_context(self.config, self.lm)
        widths = {hookpoint.module_path: hookpoint.d_in for hookpoint in self.lm.hookpoints}
        require_same_model(sae.config, self.lm.identity, widths, doing="encode")
        self.sae: SparseAutoencoder = sae.to(self.lm.device)
        self._stop = stop

    def pieces(self, tokens: int = 0, documents: Iterable[Document] | None = None) -> Iterator[EncodedPiece]:
        """Yield the text piece by piece, until ``tokens`` kept tokens (0 for all); or these documents."""
        left = tokens or ALL
        for group in grouped(iter_documents(self.config.text) if documents is None else documents):
            piece = self._piece(group, left)
            if piece is not None:
                yield piece
                left -= piece.corpus.n_kept
            if left <= 0:
                return

    def _piece(self, group: list[Document], left: int) -> EncodedPiece | None:
        try:
            sequences = pack_rows(replace(self.config, tokens=left), self.lm, group, left, cut=True)
        except NoTokensError:
            return None
        hookpoints = resolve_all(self.places.inputs, self.lm.hookpoints)
        corpus = LiveCorpus(Harvester(self.lm, hookpoints, sequences, self.config), self.places)
        return EncodedPiece(corpus, self._codes(corpus))

    def _codes(self, corpus: LiveCorpus) -> Iterator[CodeShard]:
        for stretch in corpus.stretches(STRETCH):
            for x, positions in corpus.activations(stretch):
                if len(positions):
                    code = SparseCode.cat(encoded(self.sae, x, self._stop)).ragged()
                    yield CodeShard(token_index=positions, code=code)


def grouped(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield documents in groups that are packed together."""
    held: list[Document] = []
    characters = 0
    for document in documents:
        held.append(document)
        characters += document.n_characters
        if len(held) >= DOCUMENTS or characters >= CHARACTERS:
            yield held
            held, characters = [], 0
    if held:
        yield held
