"""Damage to good files, drawn by hypothesis as plain data and applied here.

Two kinds: edits of bytes, and edits of the values in JSON, in safetensors headers and in Parquet columns,
which keep the file well-formed so that the code behind the parser is reached.
"""

from __future__ import annotations

import copy
import io
import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from hypothesis import strategies as st

from saelab.storage.manifest import digest_of

DEEP_LIST, DEEP_TABLE = "@deep list@", "@deep table@"
"""Stand for nesting as deep as the interpreter's stack allows; put in as text, since `json` refuses to write it."""

_NUMBERS = [0, 1, -1, 2, 7, 4096, 2**31, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400]
_NUMBERS += [10**4300 - 1, 0.0, -0.0, 0.5, 1e308, 5e-324, float("nan"), float("inf")]
_TEXTS = [
    "",
    " ",
    "0",
    "7",
    "x" * 300,
    "a\0b",
    "\ud800",
    "é\u202e",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a\\b",
]
_NAMES = ["F32", "BF16", "BOOL", "I64", "bfloat16", "float32", "float64", "train", "heldout", "scale"]
_NAMES += ["layer_norm", "per_token", "per_batch", "per_feature", "threshold", "topk", "saelab-run", "0" * 32]
_LISTS = [
    [],
    [0],
    [1, 2],
    [0, 0],
    [2**61] * 300,
    [0, 2**61],
    [-4],
    [True],
    [[]],
    [None],
    ["a", "a"],
    [0] * 2000,
]
_TABLES = [{}, {"": {}}, {"name": "threshold"}, {"name": "per_token", "k": 2**70}]
_TABLES += [{"kind": "unit_norm", "factor": 1}, {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}]
_TABLES += [{"bytes": 0, "blake2b": "0" * 32}]
HOSTILE = [None, True, False, *_NUMBERS, *_TEXTS, *_NAMES, *_LISTS, *_TABLES, DEEP_LIST, DEEP_TABLE]
_RAW_NUMBERS = [
    "00",
    "01",
    "7f",
    "80",
    "ffff",
    "00" * 8,
    "ff" * 8,
    "ff" * 7 + "7f",
    "00" * 7 + "80",
    "0000c07f",
]
HOSTILE_BYTES = [bytes.fromhex(digits) for digits in _RAW_NUMBERS]
HOSTILE_BYTES += [
    b"{",
    b"}",
    b'"',
    b"null,",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"[" * 3000,
    b"\\ud800",
    b"\xc3\x28",
]


@dataclass(frozen=True)
class ByteEdit:
    kind: str
    where: int
    """Position, modulo the length."""
    length: int
    value: bytes


@dataclass(frozen=True)
class ValueEdit:
    kind: str
    where: int
    """Which place of the value, modulo their number."""
    other: int
    """Which place is copied from."""
    value: Any


@dataclass(frozen=True)
class Damage:
    """What is done to one file."""

    file: int
    """Which of the files, modulo their number."""
    keeps_form: bool
    """Whether values are edited where the format is known, and not bytes."""
    bytes_edits: tuple[ByteEdit, ...]
    value_edits: tuple[ValueEdit, ...]
    slack: int
    """By how many levels less than the stack allows the deep values are nested."""


# Headers and manifests stand at the beginning, so every second position lies there. Few draws for
# each edit: they take longer than most readers.
_positions = st.integers(0, 2**16).map(lambda n: n // 2 % 500 if n % 2 else n // 2)
_byte_edits = st.builds(
    ByteEdit,
    kind=st.sampled_from(["flip", "overwrite", "insert", "delete", "cut", "repeat"]),
    where=_positions,
    length=st.sampled_from([1, 1, 2, 3, 5, 8, 64, 4096]),
    value=st.sampled_from(HOSTILE_BYTES),
)
_value_edits = st.builds(
    ValueEdit,
    kind=st.sampled_from(["set", "set", "set", "delete", "add", "copy"]),
    where=st.integers(0, 2**10),
    other=st.integers(0, 2**10),
    value=st.sampled_from(HOSTILE),
)
damages = st.builds(
    Damage,
    file=st.integers(0, 63),
    keeps_form=st.sampled_from([True, True, True, False]),
    bytes_edits=st.lists(_byte_edits, min_size=1, max_size=2).map(tuple),
    value_edits=st.lists(_value_edits, min_size=1, max_size=2).map(tuple),
    slack=st.integers(0, 60),
)


def damaged_file(name: str, raw: bytes, damage: Damage) -> bytes:
    """Return the content of a file after the damage; a file that has lost its form is edited as bytes."""
    edit = _EDITS_OF_VALUES.get(Path(name).suffix) if damage.keeps_form else None
    try:
        return edit(raw, damage) if edit else edited_bytes(raw, damage)
    except _NO_SUCH_FORM:
        return edited_bytes(raw, damage)


def json_text(value: Any, damage: Damage) -> bytes:
    """Write a value as JSON, deep values included."""
    text = json.dumps(value, sort_keys=True)
    if "@deep" in text:
        depth = max(1, _free_frames() - damage.slack)
        text = text.replace(f'"{DEEP_LIST}"', "[" * depth + "]" * depth)
        text = text.replace(f'"{DEEP_TABLE}"', '{"a": ' * depth + "0" + "}" * depth)
    return text.encode()


def sealed_manifest(body: Any, damage: Damage) -> bytes:
    """Write a manifest as a stranger would who knows its checksum."""
    if not isinstance(body, dict):
        return json_text(body, damage)
    text = json_text(body, damage)
    return b'{"blake2b": "' + digest_of(text).encode() + b'", ' + text[1:]


def edited_bytes(raw: bytes, damage: Damage) -> bytes:
    """Apply the edits of bytes."""
    for edit in damage.bytes_edits:
        at = edit.where % (len(raw) + 1)
        head, tail = raw[:at], raw[at:]
        if edit.kind == "flip" and tail:
            raw = head + bytes([tail[0] ^ (1 << edit.length % 8)]) + tail[1:]
        elif edit.kind == "overwrite":
            raw = head + edit.value + tail[len(edit.value) :]
        elif edit.kind == "insert":
            raw = head + edit.value + tail
        elif edit.kind == "delete":
            raw = head + tail[edit.length :]
        elif edit.kind == "cut":
            raw = head
        elif edit.kind == "repeat":
            raw = head + tail[: edit.length] + tail
    return raw


def edited_values(value: Any, damage: Damage) -> Any:
    """Apply the edits of values to parsed JSON, in place."""
    top = [value]
    for edit in damage.value_edits:
        places = list(_places(top))
        container, key = places[edit.where % len(places)]
        source, source_key = places[edit.other % len(places)]
        if edit.kind == "set":
            container[key] = copy.deepcopy(edit.value)
        elif edit.kind == "copy":
            container[key] = copy.deepcopy(source[source_key])
        elif edit.kind == "add":
            _add(container[key], source_key, copy.deepcopy(edit.value))
        elif edit.kind == "delete" and container is not top:
            del container[key]
    return top[0]


def every_value_edit(name: str, raw: bytes) -> Iterator[ValueEdit]:
    """Yield every single setting and removal of a value in a file whose values can be edited; none for others."""
    if name.endswith(".safetensors"):
        raw = raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]]
    elif not name.endswith(".json"):
        return
    for where in range(len(list(_places([json.loads(raw)])))):
        yield ValueEdit("delete", where, 0, None)
        for value in HOSTILE:
            yield ValueEdit("set", where, 0, value)


def _add(container: Any, key: Any, value: Any) -> None:
    if isinstance(container, dict):
        container[key if isinstance(key, str) else "added"] = value
    elif isinstance(container, list):
        container.append(value)


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    keys = range(len(container)) if isinstance(container, list) else list(container)
    for key in keys:
        yield container, key
        # A long list of numbers is one place, or nothing else would be hit.
        if isinstance(container[key], dict | list) and len(container[key]) < 100:
            yield from _places(container[key])


def _edited_json(raw: bytes, damage: Damage) -> bytes:
    return json_text(edited_values(json.loads(raw), damage), damage)


def _edited_header(raw: bytes, damage: Damage) -> bytes:
    (length,) = struct.unpack("<Q", raw[:8])
    header = _edited_json(raw[8 : 8 + length], damage)
    header += b" " * (length - len(header))
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


def _edited_columns(raw: bytes, damage: Damage) -> bytes:
    """Edit a table's values, which may change the columns' types; sometimes put a column in twice."""
    columns = pyarrow.parquet.read_table(io.BytesIO(raw)).to_pydict()
    table = pyarrow.table(edited_values(columns, damage))
    if damage.slack % 8 == 0:
        table = table.append_column(table.schema.field(0), table.column(0))
    written = io.BytesIO()
    pyarrow.parquet.write_table(table, written)
    return written.getvalue()


_EDITS_OF_VALUES = {".json": _edited_json, ".safetensors": _edited_header, ".parquet": _edited_columns}
_NO_SUCH_FORM = (
    *(ValueError, TypeError, OverflowError, RecursionError, AttributeError, IndexError, KeyError),
    *(OSError, struct.error, pyarrow.ArrowException),
)


def _free_frames() -> int:
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1
    return sys.getrecursionlimit() - depth
