"""Where the parts of an activation store lie, and the raw arrays and tables among them.

```
manifest.json           facts, sizes and checksums; written last
config.json             what was asked for and from which inputs; written first
tokens.bin              int32 little-endian, the whole token stream
rows.bin                int64 little-endian, start of each row of tokens, and last the number of tokens
documents.parquet       id, start, length, source, split, and columns kept from the data
roles.bin               one byte a token, of conversations only: a code of `saelab.text.chat.ROLES`, + 128 where special
keep.bin                one bit a token, lowest bit first: whether it has an activation row
loss.bin                float32 little-endian, next-token loss of every token; NaN at the last token of a row
statistics/<slug>.safetensors           mean of the training rows, float64
hooks/<slug>/shard-000000.safetensors   activations [n, d_in], token_index [n], perhaps gradients [n, d_in]
history.json            which stores this one was before it was extended; the manifest does not list it
unfinished/             until the store is finished: `saelab.activations.unfinished`
```

A store of somebody's own activations has no tokens, rows or losses; its documents are blocks of rows.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from saelab.errors import DamagedFileError
from saelab.storage.files import write_aside, write_bytes
from saelab.text.chat import ROLES as ROLES_OF_TOKENS
from saelab.text.chat import SPECIAL
from saelab.text.documents import ColumnValue
from saelab.text.packing import DocumentTable
from saelab.text.spec import DOCUMENT_COLUMNS

if TYPE_CHECKING:
    import pyarrow

CONFIG = "config.json"
TOKENS = "tokens.bin"
ROWS = "rows.bin"
DOCUMENTS = "documents.parquet"
KEEP = "keep.bin"
ROLES = "roles.bin"
LOSS = "loss.bin"
HISTORY = "history.json"
"""Which stores this one was before it was extended; no data file, so that equal data stay equal."""

_SLUG = re.compile(r"\w[\w.-]*", re.ASCII)


def shard_name(slug: str, shard: int) -> str:
    """Return the name of a shard of activations."""
    return f"hooks/{slug}/shard-{shard:06d}.safetensors"


def statistics_name(slug: str) -> str:
    """Return the name of a hookpoint's mean."""
    return f"statistics/{slug}.safetensors"


def is_slug(name: object) -> bool:
    """Whether a name is safe as the name of a folder inside the store."""
    return isinstance(name, str) and _SLUG.fullmatch(name) is not None


def write_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write an array as raw little-endian numbers."""
    write_bytes(path, np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())


def map_array(path: Path, dtype: str, length: int) -> np.memmap:
    """Map a raw array of known length read-only.

    Raises:
        DamagedFileError: The file is missing or has another length.
    """
    expected = length * np.dtype(dtype).itemsize
    if not path.is_file() or path.stat().st_size != expected:
        found = f"{path.stat().st_size:,} bytes" if path.is_file() else "no file"
        raise DamagedFileError(f"{path}: expected {expected:,} bytes, found {found}; cache the store again")
    if length == 0:
        return np.empty(0, dtype=dtype).view(np.memmap)
    try:
        return np.memmap(path, dtype=dtype, mode="r", shape=(length,))
    except OSError as error:
        raise DamagedFileError(f"cannot read {path}: {error.strerror}") from error


def write_bits(path: Path, bits: NDArray[np.bool_]) -> None:
    """Write one bit for each value, lowest bit of a byte first."""
    write_bytes(path, np.packbits(bits, bitorder="little").tobytes())


def read_bits(path: Path, length: int) -> NDArray[np.bool_]:
    """Read bits that `write_bits` wrote."""
    packed = map_array(path, "u1", -(-length // 8))
    return np.unpackbits(packed, count=length, bitorder="little").astype(np.bool_)


def write_documents(path: Path, documents: DocumentTable) -> None:
    """Write the document table as Parquet."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {
            "id": pyarrow.array(documents.ids, pyarrow.string()),
            "start": pyarrow.array(documents.starts, pyarrow.int64()),
            "length": pyarrow.array(documents.lengths, pyarrow.int64()),
            "source": pyarrow.array(documents.sources, pyarrow.string()),
            "split": pyarrow.array(
                np.where(documents.heldout, "heldout", "train").tolist(), pyarrow.string()
            ),
        }
        | {name: pyarrow.array(values) for name, values in documents.columns.items()}
    )
    write_aside(path, lambda file: pyarrow.parquet.write_table(table, file))


def read_documents(path: Path) -> pyarrow.Table:
    """Read the document table.

    Raises:
        DamagedFileError: It is missing, not Parquet, or lacks a column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DamagedFileError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    if missing := [name for name in DOCUMENT_COLUMNS if name not in table.column_names]:
        raise DamagedFileError(f"{path} has no column {missing[0]!r}")
    return table


def document_table(table: pyarrow.Table, n_tokens: int, path: Path) -> DocumentTable:
    """Check a document table and turn it into arrays.

    Raises:
        DamagedFileError: The documents are not whole numbers of tokens, one behind the other, from
            the first token to the last, a split is unknown, or a further column holds no plain values.
    """
    try:
        starts = table["start"].to_numpy().astype(np.int64, casting="safe")
        lengths = table["length"].to_numpy().astype(np.int64, casting="safe")
    except (TypeError, ValueError) as error:
        raise DamagedFileError(f"{path}: start and length are not whole numbers") from error
    splits = np.asarray(table["split"].to_pylist(), dtype=object)
    whole = len(starts) > 0 and starts[0] == 0 and bool((lengths > 0).all())
    if not whole or not np.array_equal(starts + lengths, np.append(starts[1:], n_tokens)):
        raise DamagedFileError(f"{path}: the documents do not follow one another over {n_tokens:,} tokens")
    if not np.isin(splits, ["train", "heldout"]).all():
        raise DamagedFileError(f"{path}: a split is neither train nor heldout")
    ids, sources = tuple(table["id"].to_pylist()), tuple(table["source"].to_pylist())
    if not all(isinstance(text, str) for text in (*ids, *sources)):
        raise DamagedFileError(f"{path}: an id or a source is not text")
    return DocumentTable(
        ids=ids,
        starts=starts,
        lengths=lengths,
        sources=sources,
        heldout=splits == "heldout",
        columns=_kept_columns(table, path),
    )


def _kept_columns(table: pyarrow.Table, path: Path) -> dict[str, tuple[ColumnValue, ...]]:
    from pyarrow import types

    names = table.column_names
    if len(set(names)) < len(names):
        raise DamagedFileError(f"{path}: two columns have the same name")
    columns: dict[str, tuple[ColumnValue, ...]] = {}
    for name in names:
        kind = table.schema.field(name).type
        if name in DOCUMENT_COLUMNS:
            continue
        plain = (
            types.is_string,
            types.is_large_string,
            types.is_integer,
            types.is_floating,
            types.is_boolean,
        )
        if not any(is_plain(kind) for is_plain in plain):
            raise DamagedFileError(
                f"{path}: the column {name!r} holds {kind}, not text, numbers or truth values"
            )
        columns[name] = tuple(table[name].to_pylist())
    return columns


def read_roles(path: Path, length: int) -> NDArray[np.uint8]:
    """Map the role of every token.

    Raises:
        DamagedFileError: The file is missing, has another length, or holds a code that is no role.
    """
    roles = map_array(path, "u1", length)
    if (wrong := (roles & ~np.uint8(SPECIAL)) >= len(ROLES_OF_TOKENS)).any():
        raise DamagedFileError(
            f"{path}: byte {int(wrong.argmax()):,} is {int(roles[wrong][0])}, which is no role"
        )
    return roles
