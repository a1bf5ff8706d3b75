"""Read a text source into documents with their split.

A `.jsonl` or `.parquet` file gives one document a line or row. A `.txt` file has no documents of
its own, so it is cut into pieces of at least `TEXT_PIECE_CHARACTERS` characters, at blank lines
where there are any: a file that were one document could not be split into training and held-out text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from saelab.errors import UsageError
from saelab.text.documents import Document, with_splits
from saelab.text.spec import TextSpec
from saelab.text.stdlib import stdlib_documents

TEXT_PIECE_CHARACTERS = 4000
_CONVERSATION_FIELDS = ("messages", "conversations")


def load_documents(spec: TextSpec) -> list[Document]:
    """Read the documents of a source, in a fixed order, with their split.

    Raises:
        UsageError: The file is missing, of an unknown kind, empty, or a line or row has no text.
    """
    documents = _load_all(spec)
    return [d for d in documents if d.split == "heldout"] if spec.only_heldout else documents


def _load_all(spec: TextSpec) -> list[Document]:
    if spec.source in ("stdlib", "stdlib-with-tests"):
        return stdlib_documents(
            include_tests=spec.source == "stdlib-with-tests", heldout_share=spec.heldout_share
        )
    path = Path(spec.source)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise UsageError(_unknown(spec.source, path))
    if not path.is_file():
        raise UsageError(f"text: there is no file {path}")
    try:
        documents = list(with_splits(read(path), spec.heldout_share))
    except OSError as error:
        raise UsageError(f"text: cannot read {path}: {error.strerror or error}") from error
    if not any(document.text for document in documents):
        raise UsageError(f"text: {path} holds no document with text in it")
    return documents


def text_hash(documents: Iterable[Document]) -> str:
    """Return the 128-bit blake2b of ids, splits and texts in order: equal hashes mean equal documents."""
    digest = hashlib.blake2b(digest_size=16)
    for document in documents:
        for part in (document.id, document.split, document.text):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
    return digest.hexdigest()


def _unknown(source: str, path: Path) -> str:
    if path.exists():
        return f"text: {path} is not a .txt, .jsonl or .parquet file, and nothing else is read"
    return (
        f"text: {source!r} is neither `stdlib`, `stdlib-with-tests` nor a .txt, .jsonl or .parquet file; "
        "data sets of the hub are not supported in this version: save the text as one of these files"
    )


def _read_txt(path: Path) -> Iterator[Document]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"text: {path} is not UTF-8 (byte {error.start:,}); convert it first") from error
    for number, piece in enumerate(_pieces(text)):
        if piece.strip():
            yield Document(id=f"{path.name}:{number:06d}", text=piece, source=path.name)


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = start + TEXT_PIECE_CHARACTERS
        # A blank line if one follows soon, else a line's end, else (one endless line) the bare limit.
        for separator in ("\n\n", "\n"):
            found = text.find(separator, end, end + TEXT_PIECE_CHARACTERS)
            if found >= 0:
                end = found + len(separator)
                break
        if len(text) - end < TEXT_PIECE_CHARACTERS // 2:
            end = len(text)
        yield text[start:end]
        start = end


def _read_jsonl(path: Path) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"text: {path}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{where}: not valid JSON ({error})") from error
            if not isinstance(record, dict):
                raise UsageError(f'{where}: not a JSON object with a field "text"')
            yield _document(record, path, number, where)


def _read_parquet(path: Path) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [name for name in ("id", "text") if name in file.schema_arrow.names]
            if "text" not in columns:
                raise UsageError(f'text: {path} has no column "text"; {_fields(file.schema_arrow.names)}')
            number = 0
            for batch in file.iter_batches(columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield _document(record, path, number, f"text: {path}, row {number}")
    except pyarrow.ArrowException as error:
        raise UsageError(f"text: {path} cannot be read as Parquet: {error}".splitlines()[0]) from error


def _document(record: dict[str, Any], path: Path, number: int, where: str) -> Document:
    text = record.get("text")
    if not isinstance(text, str):
        problem = 'the field "text" is not a string' if "text" in record else 'no field "text"'
        raise UsageError(f"{where}: {problem}; {_fields(record)}")
    name = record.get("id")
    identifier = f"{path.name}:{number}" if name is None else str(name)
    try:
        (identifier + text).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where}: the text holds half of a surrogate pair and is not Unicode") from error
    return Document(id=identifier, text=text, source=path.name)


def _fields(names: Iterable[str]) -> str:
    names = list(names)
    if any(name in names for name in _CONVERSATION_FIELDS):
        return "conversations are not supported in this version: write each as one text"
    return f"it has {', '.join(sorted(names)) or 'no fields'}"


_READERS: dict[str, Callable[[Path], Iterator[Document]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
