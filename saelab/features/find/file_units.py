"""Units of files: their texts, from the codes of an indexed corpus where they are documents of it, else encoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saelab.activations.spec import CacheConfig
from saelab.errors import UsageError
from saelab.evaluation.sources import Shared
from saelab.features.codes import CodeShard
from saelab.features.encode.stream import TextEncoder
from saelab.features.find.corpus_units import DocumentText
from saelab.features.find.units import Units, label_units
from saelab.features.find.watch import Shards
from saelab.features.index import FeatureIndex
from saelab.interrupts import StopRequest
from saelab.progress import Progress
from saelab.text.documents import Document
from saelab.text.load import iter_documents
from saelab.text.spec import TextSpec
from saelab.training.run import Run

HOW = ("packing", "context", "mask_bos", "mask_first_positions")
"""What the codes of a document hang on beside its text."""


@dataclass
class _Text:
    """A text of the files; one that is in them several times counts once."""

    document: Document
    path: str
    sets: set[int]


@dataclass(frozen=True, kw_only=True)
class FileUnits:
    """Labelled texts, one unit each and each a document of its own, with their codes."""

    shards: Shards
    """Reads their codes, and those of other documents of the corpus, from the beginning."""
    units: Units
    """The texts."""
    n_from_corpus: int
    """Texts whose codes were there already."""


def units_of_files(
    run: Run,
    paths: Sequence[str],
    *,
    column: str,
    index: FeatureIndex | None,
    seed: int,
    shared: Shared,
    stop: StopRequest,
    quiet: bool,
) -> FileUnits:
    """Return the texts of two files as units.

    A text that is, character for character, a document of the indexed corpus has its codes there. They are taken
    if every text of both files is there, or if the corpus was read one document to a row, as other texts are: the
    codes of packed documents hang on the document before, and texts read in two ways must not be compared.

    Args:
        run: The run.
        paths: The positive and the negative file.
        column: Field that holds the text.
        index: An index with codes, if there is one.
        seed: Decides the halves.
        shared: Loads the model, if it is needed.
        stop: Asks for a stop.
        quiet: Show no progress.

    Raises:
        UsageError: A file is not there or has no text, or the run's model cannot be found.
        Interrupted: A stop was asked for.
    """
    texts = _texts_of(paths, column)
    places = {} if index is None or not index.has("codes") else _places(index, texts)
    if (
        index is not None
        and len(places) < len(texts)
        and places
        and not _reads_alike(run, index, paths, shared)
    ):
        places = {}
    missing = [number for number in range(len(texts)) if number not in places]
    encoded = _Encoded([], [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.bool_)])
    if index is not None and places:
        of_token = np.full(len(index.tokens), -1, dtype=np.int64)
        for number, (start, end) in places.items():
            of_token[start:end] = number
        encoded = _Encoded([], [of_token], [np.asarray(index.keep)])
    with Progress("encoding", len(missing), "texts", quiet=quiet or not missing) as progress:
        for path in dict.fromkeys(texts[number].path for number in missing):
            encoder = TextEncoder(run, TextSpec(source=path, column=column), shared, stop)
            own = [number for number in missing if texts[number].path == path]
            encoded.add(encoder, texts, own, progress)
    units = _labelled(texts, encoded, seed)

    def shards() -> Iterator[CodeShard]:
        there = index.codes() if index is not None and places else iter(())
        return chain(there, encoded.shards)

    return FileUnits(shards=shards, units=units, n_from_corpus=len(places))


@dataclass
class _Encoded:
    """Codes that were made, with unit and mask of every token."""

    shards: list[CodeShard]
    owners: list[NDArray[np.int64]]
    keeps: list[NDArray[np.bool_]]

    def add(self, encoder: TextEncoder, texts: list[_Text], own: list[int], progress: Progress) -> None:
        """Encode some texts; their tokens follow those that are there."""
        documents = [replace(texts[number].document, id=str(number)) for number in own]
        for piece in encoder.pieces(documents=documents):
            corpus = piece.corpus
            offset = sum(map(len, self.owners))
            self.shards += [
                CodeShard(token_index=one.token_index + offset, code=one.code) for one in piece.shards
            ]
            numbers = np.array([int(name) for name in corpus.documents.ids], dtype=np.int64)
            self.owners.append(numbers[corpus.document_of(np.arange(corpus.n_tokens))])
            self.keeps.append(np.asarray(corpus.keep))
            progress.advance(len(numbers))


def _labelled(texts: list[_Text], encoded: _Encoded, seed: int) -> Units:
    names = [hashlib.blake2b(_content(one.document).encode(), digest_size=16).hexdigest() for one in texts]
    return label_units(
        np.concatenate(encoded.owners),
        np.concatenate(encoded.keeps),
        np.arange(len(texts), dtype=np.int64),
        np.array([0 in one.sets for one in texts], dtype=np.bool_),
        np.array([1 in one.sets for one in texts], dtype=np.bool_),
        names,
        seed,
    )


def _texts_of(paths: Sequence[str], column: str) -> list[_Text]:
    found: dict[str, _Text] = {}
    for number, path in enumerate(paths):
        if not Path(path).expanduser().is_file():
            raise UsageError(f"find: {path} is no file; sets are files, re:REGEX or column:NAME=VALUE")
        n_before = sum(number in one.sets for one in found.values())
        for document in _documents(TextSpec(source=path, column=column)):
            one = found.setdefault(_content(document), _Text(document, path, set()))
            one.sets.add(number)
        if sum(number in one.sets for one in found.values()) == n_before:
            raise UsageError(f"find: {path} holds no text")
    return list(found.values())


def _documents(text: TextSpec) -> Iterator[Document]:
    """Yield the texts of a file; of a .txt file every line with something in it is one."""
    for document in iter_documents(text):
        if not text.source.endswith(".txt"):
            if document.n_characters:
                yield document
            continue
        for line in document.text.splitlines():
            if line.strip():
                yield replace(document, text=line)


def _content(document: Document) -> str:
    return json.dumps(document.messages, sort_keys=True) if document.messages else document.text


def _places(index: FeatureIndex, texts: list[_Text]) -> dict[int, tuple[int, int]]:
    """Return first token and the one behind the last of each text that is a document of the corpus."""
    wanted = {
        one.document.text.encode(): number for number, one in enumerate(texts) if not one.document.messages
    }
    starts, lengths = index.documents["start"].to_pylist(), index.documents["length"].to_pylist()
    found: dict[int, tuple[int, int]] = {}
    for start, length in zip(starts, lengths, strict=True):
        number = wanted.get(DocumentText(index, start, start + length).raw)
        if number is not None and number not in found:
            found[number] = (start, start + length)
    return found


def _reads_alike(run: Run, index: FeatureIndex, paths: Sequence[str], shared: Shared) -> bool:
    """Whether the documents of the corpus were read as other texts are, one to a row."""
    corpus = index.manifest.content.get("corpus")
    provenance = corpus.get("provenance") if isinstance(corpus, dict) else None
    if not isinstance(provenance, dict) or provenance.get("packing") != "document":
        return False
    if provenance.get("mask_norm_ratio") is not None:
        return False
    config: CacheConfig = TextEncoder(run, TextSpec(source=paths[0]), shared, StopRequest()).config
    return all(provenance.get(name) == getattr(config, name) for name in HOW)
