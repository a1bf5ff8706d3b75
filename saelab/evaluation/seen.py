"""Which documents of a text a run was trained on: they are never evaluated as if they were new.

In the run's own text, however its path is spelled, the split of the documents tells. In any other text a
document that stands among the run's training documents is left out, whatever file it is in: its text is
compared but for white space. Training documents are read up to a million documents or two thousand million
characters, of which one digest each is kept. What is not recognised: the same text cut into other documents,
near copies, and training texts that are not on this machine; of the last, and of what lies beyond those limits,
the record warns. A store that is given is not looked through.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from saelab.errors import SaelabError, UsageError
from saelab.text.documents import Document
from saelab.text.files import find_files, names_within
from saelab.text.load import STDLIB_SOURCES, iter_documents
from saelab.text.spec import TextSpec

MAX_DOCUMENTS = 1_000_000
MAX_CHARACTERS = 2 * 10**9


@dataclass(frozen=True, kw_only=True)
class TrainingText:
    """The text that a run was trained on."""

    text: TextSpec
    """All of it, with its split."""
    n_documents: int | None = None
    """How many documents were read of it, both splits together; None where that may be all."""
    has_changed: bool = False
    """Whether it holds something else now than it did then."""


class Unseen:
    """The documents of a text without those that a run was trained on.

    Args:
        text: The text to evaluate.
        training: What the run was trained on.
    """

    def __init__(self, text: TextSpec, training: TrainingText) -> None:
        self.text, self._training = only_unseen(text, training.text), training
        self._n_read = self._n_left_out = 0
        self._doubts: list[str] = []

    def __iter__(self) -> Iterator[Document]:
        seen = self._contents_of_training()
        for document in iter_documents(self.text):
            self._n_read += 1
            if seen and _content(document) in seen:
                self._n_left_out += 1
            else:
                yield document

    @property
    def left_out(self) -> int:
        """Documents that were left out so far."""
        return self._n_left_out

    def warnings(self) -> tuple[str, ...]:
        """Say, once the documents have been read, what was left out and what could not be compared."""
        found = []
        if self._n_left_out:
            found.append(
                f"{self._n_left_out:,} of the {self._n_read:,} documents that were read of {self.text.source} "
                "were left out: the run was trained on them"
            )
        if self._training.has_changed:
            found.append(
                f"the run's own text, {self._training.text.source}, has changed since: what it was trained on is "
                "known only as far as it still stands there"
            )
        return (*found, *self._doubts)

    def _contents_of_training(self) -> set[bytes]:
        own = self._training.text
        if is_same_text(self.text, own):
            return set()
        unchecked = f"whether the run was trained on documents of {self.text.source} could not be checked"
        if not is_local(own):
            self._doubts.append(f"{unchecked}: its own text, {own.source}, is a data set of the hub")
            return set()
        try:
            seen, is_whole = _training_contents(self._training)
        except (SaelabError, OSError) as error:
            self._doubts.append(f"{unchecked}: {error}")
            return set()
        if not is_whole:
            self._doubts.append(
                f"{unchecked} beyond the first {len(seen):,} different training documents of {own.source}"
            )
        return seen


def only_unseen(text: TextSpec, own: TextSpec) -> TextSpec:
    """Return the documents to evaluate; of the run's own text those that are held out of its training."""
    is_own = _place(text.source) == _place(own.source)
    share = min(text.heldout_share, own.heldout_share) if is_own else text.heldout_share
    return replace(text, heldout_share=share, only_heldout=True)


def is_same_text(text: TextSpec, own: TextSpec) -> bool:
    """Whether two texts are the same documents under the same ids, so that their splits can be compared."""

    def parts(spec: TextSpec) -> list[object]:
        return [_place(spec.source), spec.subset, spec.split or "train", spec.revision, spec.column]

    return parts(text) == parts(own)


def is_local(text: TextSpec) -> bool:
    """Whether a text lies on this machine, or should: everything but a data set of the hub."""
    if text.source in STDLIB_SOURCES or Path(text.source).expanduser().exists():
        return True
    try:
        return bool(find_files(text.source))
    except UsageError:
        return True  # it looks like files, which are not there


def _place(source: str) -> tuple[tuple[str, str], ...]:
    """Return what a source names, whatever its spelling: files with their names in the source, which are in the ids."""
    if source in STDLIB_SOURCES:
        return ((source, ""),)
    try:
        files = find_files(source)
    except UsageError:
        files = []
    if not files:
        path = Path(source).expanduser()
        return ((path.name, str(path.resolve())),) if path.exists() else ((source, ""),)
    named = zip(names_within(files), files, strict=True)
    return tuple((name, str(file.resolve())) for name, file in named)


def _training_contents(training: TrainingText) -> tuple[set[bytes], bool]:
    """Return the contents of the training documents, and whether they are all."""
    seen: set[bytes] = set()
    n_characters = 0
    documents = iter_documents(replace(training.text, only_heldout=False))
    for number, document in enumerate(islice(documents, training.n_documents)):
        if number == MAX_DOCUMENTS or n_characters > MAX_CHARACTERS:
            return seen, False
        n_characters += document.n_characters
        if document.split == "train" and document.n_characters:
            seen.add(_content(document))
    return seen, True


def _content(document: Document) -> bytes:
    """Return a 128-bit digest of what a document says: the same in every kind of file."""
    turns = [[turn["role"], " ".join(turn["content"].split())] for turn in document.messages]
    said = json.dumps(turns) if turns else " ".join(document.text.split())
    return hashlib.blake2b(said.encode(), digest_size=16).digest()
