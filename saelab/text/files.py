"""Text files: which files a source names, and their documents, read lazily in a fixed order.

A `.jsonl` or `.parquet` file gives one document a line or row. A `.txt` file has no documents of
its own, so it is cut into pieces of at least `TEXT_PIECE_CHARACTERS` characters, at blank lines
where there are any: a file that were one document could not be split into training and held-out text.

Nothing here holds a whole file: a text is read in pieces, a table in batches of rows.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from saelab.errors import UsageError
from saelab.storage.manifest import digest_of_file
from saelab.text.documents import Document
from saelab.text.records import document_of, fields_there
from saelab.text.spec import TextSpec

TEXT_PIECE_CHARACTERS = 4000
MAX_LINE_BYTES = 64 * 2**20
"""Longest line of a .jsonl file: one document, held in memory."""
MAX_GZIP_RATIO = 200
"""Text shrinks to a tenth or so. More than this, past `GZIP_RATIO_FROM` bytes, is taken for a gzip bomb."""
GZIP_RATIO_FROM = 16 * 2**20
KINDS = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
_CHUNK_BYTES = 1 << 16
_ROWS_AT_ONCE = 256


def kind_of(name: str) -> str | None:
    """Return which of `KINDS` a file name ends in."""
    return next((kind for kind in KINDS if name.lower().endswith(kind)), None)


def find_files(source: str) -> list[Path]:
    """Return the files that a source names, in a fixed order; none where it names none and looks like none.

    Args:
        source: A file, a folder (its files of one kind, at any depth), a glob, or several joined by commas.

    Raises:
        UsageError: There is no such file, or it is of a kind that is not read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _files_below(path)
    if path.exists():
        return [_of_known_kind(path)]
    if glob.has_magic(source) and (found := _matching(source)):
        return found  # before lists: a folder in the pattern may have a comma in its name
    if "," in source:
        return [file for part in source.split(",") for file in _named(part.strip())]
    return _named(source) if glob.has_magic(source) or kind_of(source) or path.suffix == ".gz" else []


def identity_of_files(files: Sequence[Path]) -> list[list[str]]:
    """Return the name within the source and the digest of each file."""
    names = names_within(files)
    return [[name, _digest(path, *_stamp(path))] for name, path in zip(names, files, strict=True)]


def names_within(files: Sequence[Path]) -> list[str]:
    """Return names that differ for all files: their paths below the folder that holds them all."""
    if len(files) == 1:
        return [files[0].name]
    common = Path(os.path.commonpath([file.absolute().parent for file in files]))
    return [file.absolute().relative_to(common).as_posix() for file in files]


def read_files(files: Sequence[Path], spec: TextSpec, start: int) -> Iterator[Document]:
    """Read the documents of files one behind the other, from document number `start` on; splits are not set.

    Raises:
        UsageError: A file cannot be read, or a line or row has no text.
    """
    for path, name in zip(files, names_within(files), strict=True):
        kind = kind_of(path.name)
        try:
            if kind == ".parquet":
                rows = _parquet_rows(path)
                if start >= rows:
                    start -= rows
                    continue
                yield from _read_parquet(path, name, spec, start)
                start = 0
                continue
            read = _read_txt if kind == ".txt" else _read_jsonl
            for make in read(path, name, spec):
                if start:  # counted, not made
                    start -= 1
                else:
                    yield make()
        except OSError as error:
            raise UsageError(f"text: cannot read {path}: {error.strerror or error}") from error


def _named(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        return _files_below(path)
    if path.exists():
        return [_of_known_kind(path)]
    if glob.has_magic(source):
        if found := _matching(source):
            return found
        raise UsageError(f"text: no file is named as {source!r} says")
    raise UsageError(f"text: there is no file {path}")


def _matching(pattern: str) -> list[Path]:
    """Return the files that a pattern stands for."""
    path = Path(pattern).expanduser()
    names = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - the pattern may be absolute
    return [_of_known_kind(file) for file in map(Path, names) if file.is_file()]


def _of_known_kind(path: Path) -> Path:
    if not kind_of(path.name):
        raise UsageError(
            f"text: {path} is not a {', '.join(KINDS[:-1])} or {KINDS[-1]} file, and no other is read"
        )
    return path


def _files_below(folder: Path) -> list[Path]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if kind_of(path.name)
        and path.is_file()
        and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    kinds = sorted({str(kind_of(path.name)).removesuffix(".gz") for path in files})
    if not files:
        raise UsageError(f"text: the folder {folder} holds no {', '.join(KINDS[:-1])} or {KINDS[-1]} file")
    if len(kinds) > 1:
        raise UsageError(
            f"text: the folder {folder} holds files of several kinds ({', '.join(kinds)}); "
            f"choose with a pattern, for example {folder}/*{kinds[0]}"
        )
    return files


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise UsageError(f"text: cannot read {path}: {error.strerror or error}") from error
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, changed: int) -> str:
    """Digest of a file's content; read again only when the file's size or time of change differ."""
    return digest_of_file(path)


def _read_txt(path: Path, name: str, spec: TextSpec) -> Iterator[Callable[[], Document]]:
    for number, piece in enumerate(_pieces(_decoded(path))):
        if piece.strip():
            identifier = f"{name}:{number:06d}"
            yield lambda identifier=identifier, piece=piece: Document(id=identifier, text=piece, source=name)


def _decoded(path: Path) -> Iterator[str]:
    """Read UTF-8 in chunks, with any ends of lines as newlines."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    lines = io.IncrementalNewlineDecoder(decoder, translate=True)
    n_read = 0
    with path.open("rb") as file:
        try:
            while chunk := file.read(_CHUNK_BYTES):
                n_read += len(chunk)
                yield lines.decode(chunk)
            yield lines.decode(b"", final=True)
        except UnicodeDecodeError as error:
            place = n_read - len(error.object) + error.start
            raise UsageError(f"text: {path} is not UTF-8 (byte {place:,}); convert it first") from error


def _pieces(chunks: Iterator[str]) -> Iterator[str]:
    """Cut a text; where a piece ends depends on the text alone and not on the chunks."""
    rest, is_whole = "", False
    # The separator may lie a piece behind the limit, and half a piece more decides whether it is the last.
    needed = TEXT_PIECE_CHARACTERS * 5 // 2
    while True:
        while len(rest) <= needed and not is_whole:
            if (chunk := next(chunks, None)) is None:
                is_whole = True
            else:
                rest += chunk
        if not rest:
            return
        end = TEXT_PIECE_CHARACTERS
        # A blank line if one follows soon, else a line's end, else (one endless line) the bare limit.
        for separator in ("\n\n", "\n"):
            found = rest.find(separator, end, end + TEXT_PIECE_CHARACTERS)
            if found >= 0:
                end = found + len(separator)
                break
        if len(rest) - end < TEXT_PIECE_CHARACTERS // 2:
            end = len(rest)
        yield rest[:end]
        rest = rest[end:]


def _read_jsonl(path: Path, name: str, spec: TextSpec) -> Iterator[Callable[[], Document]]:
    for number, line in enumerate(bounded_lines(path), start=1):
        if line.strip():
            yield lambda number=number, line=line: _of_line(line, path, name, number, spec)


def _of_line(line: bytes, path: Path, name: str, number: int, spec: TextSpec) -> Document:
    where = f"text: {path}, line {number}"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise UsageError(f'{where}: not a JSON object with a field "{spec.column}"')
    return document_of(record, spec, f"{name}:{number}", name, where)


def bounded_lines(path: Path, what: str = "text", longest: int | None = None) -> Iterator[bytes]:
    """Read the lines of a file that may come from a stranger; one whose name ends in .jsonl.gz is unpacked.

    Args:
        path: The file.
        what: What is being done, for messages.
        longest: Bytes of a line at most; `MAX_LINE_BYTES` where not given.

    Raises:
        UsageError: A line is too long, or a packed file is damaged or unpacks to far too much.
        OSError: The file cannot be read.
    """
    longest = longest or MAX_LINE_BYTES
    with path.open("rb") as packed:
        try:
            if kind_of(path.name) == ".jsonl.gz":
                with gzip.GzipFile(fileobj=packed) as file:
                    yield from _limited_lines(file, f"{what}: {path}", longest, path.stat().st_size)
            else:
                yield from _limited_lines(packed, f"{what}: {path}", longest, None)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UsageError(f"{what}: {path} is not a whole gzip file ({error})") from error


def _limited_lines(
    file: io.BufferedIOBase, where: str, longest: int, packed_bytes: int | None
) -> Iterator[bytes]:
    n_read = number = 0
    while line := file.readline(longest + 1):
        number += 1
        n_read += len(line)
        if len(line) > longest:
            raise UsageError(f"{where}, line {number}: longer than {longest:,} bytes")
        if packed_bytes is not None and n_read > max(GZIP_RATIO_FROM, packed_bytes * MAX_GZIP_RATIO):
            raise UsageError(
                f"{where} has {packed_bytes:,} bytes and unpacks to more than {MAX_GZIP_RATIO} times as many, "
                "as no text does; unpack it yourself if you trust it"
            )
        yield line


def _parquet_rows(path: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(path).num_rows
    except pyarrow.ArrowException as error:
        raise UsageError(f"text: {path} cannot be read as Parquet: {error}".splitlines()[0]) from error


def _read_parquet(path: Path, name: str, spec: TextSpec, start: int) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            there = file.schema_arrow.names
            for column in (spec.column, *spec.keep_columns):
                if column not in there:
                    raise UsageError(f'text: {path} has no column "{column}"; {fields_there(there)}')
            columns = [
                column
                for column in {"id": 0, spec.column: 0} | dict.fromkeys(spec.keep_columns)
                if column in there
            ]
            number, groups = 0, []
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if groups or number + rows > start:
                    groups.append(group)
                else:
                    number += rows
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=groups, columns=columns):
                skipped = min(len(batch), max(0, start - number))
                for row, record in enumerate(batch.slice(skipped).to_pylist(), start=number + skipped + 1):
                    yield document_of(record, spec, f"{name}:{row}", name, f"text: {path}, row {row}")
                number += len(batch)
    except pyarrow.ArrowException as error:
        raise UsageError(f"text: {path} cannot be read as Parquet: {error}".splitlines()[0]) from error
