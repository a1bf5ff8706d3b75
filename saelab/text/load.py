"""Read a text source into documents with their split, lazily and always in the same order.

Documents are numbered from 0 in that order, both splits together: `iter_documents(spec, start)`
gives the same documents from number `start` on, whatever was read before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from saelab.errors import UsageError
from saelab.storage.manifest import digest_of
from saelab.text.chat import chat_template_of
from saelab.text.documents import Document, text_hash, with_splits
from saelab.text.files import find_files, identity_of_files, kind_of, read_files
from saelab.text.hub import is_saved_data_set, open_data_set
from saelab.text.sources import STDLIB_SOURCES
from saelab.text.spec import TextSpec
from saelab.text.stdlib import stdlib_documents


def iter_documents(spec: TextSpec, start: int = 0) -> Iterator[Document]:
    """Read the documents of a source one after the other, with their split.

    Args:
        spec: Which text.
        start: Number of the first document, counting all of the source; those before it are passed over.

    Returns:
        An iterator that holds a small part of the source in memory (of `stdlib` all, a dozen megabytes).

    Raises:
        UsageError: The source is missing or of an unknown kind (at once), or a line or row has no text
            (when it is reached).
        SaelabError: A data set of the hub is gated or out of reach.
    """
    if start < 0:
        raise UsageError(f"text: documents are numbered from 0, not {start}")
    documents = _documents(spec, start)
    return (d for d in documents if d.split == "heldout") if spec.only_heldout else documents


def load_documents(spec: TextSpec) -> list[Document]:
    """Read all documents of a source into memory; see `iter_documents`.

    Raises:
        UsageError: As there, or no document has text.
    """
    documents = list(iter_documents(spec))
    if not any(document.n_characters for document in documents) and not spec.only_heldout:
        raise UsageError(f"text: {spec.source} holds no document with text in it")
    return documents


def text_identity(spec: TextSpec) -> str:
    """Return a digest that names the documents of a source and their splits without reading them all as text.

    It stands for the names and contents of files, for what `stdlib` holds, or for a hub set's name,
    subset, split and commit; and for everything else that decides documents and their rendering:
    column, kept columns, share of held-out documents, chat template. A file's digest is kept in
    memory as long as its size and time of change stay the same.

    Raises:
        UsageError: The source is missing or of an unknown kind.
        SaelabError: A data set of the hub is gated or out of reach.
    """
    content: object
    if spec.source in STDLIB_SOURCES:
        content = text_hash(_documents(spec, 0))
    elif files := _local_files(spec):
        content = identity_of_files(files)
    else:
        content = open_data_set(spec).identity()
    rest = [spec.column, spec.keep_columns, spec.heldout_share, spec.only_heldout, chat_template_of(spec)]
    return digest_of(json.dumps([content, *rest]).encode())


def _documents(spec: TextSpec, start: int) -> Iterator[Document]:
    if spec.source in STDLIB_SOURCES:
        _require_plain(spec, f"`{spec.source}`")
        documents = stdlib_documents(
            include_tests=spec.source == "stdlib-with-tests", heldout_share=spec.heldout_share
        )
        return islice(iter(documents), start, None)
    if files := _local_files(spec):
        return with_splits(read_files(files, spec, start), spec.heldout_share)
    return with_splits(open_data_set(spec).documents(spec, start), spec.heldout_share)


def _local_files(spec: TextSpec) -> list[Path]:
    """Return the files to read; none where the source is a data set."""
    folder = Path(spec.source).expanduser()
    if folder.is_dir() and (spec.subset or spec.split or is_saved_data_set(folder)):
        return []
    files = find_files(spec.source)
    if files and (
        given := [name for name in ("subset", "split", "revision") if getattr(spec, name) is not None]
    ):
        raise UsageError(f"text: {spec.source} is read as files, which have no {given[0]}; leave it out")
    if txt := [path for path in files if kind_of(path.name) == ".txt"]:
        _require_plain(spec, str(txt[0]))
    return files


def _require_plain(spec: TextSpec, what: str) -> None:
    """Refuse columns of a text that has none."""
    if spec.column != "text" or spec.keep_columns:
        name = spec.column if spec.column != "text" else spec.keep_columns[0]
        raise UsageError(f"text: {what} is plain text and has no column {name!r}")
