"""Damage to good files, drawn by hypothesis as plain data and applied here.

Two kinds: edits of bytes, and edits of the values in JSON, in safetensors headers and in Parquet columns,
which keep the file well-formed so that the code behind the parser is reached.
"""

from __future__ import annotations

import io
import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow
import pyarrow.parquet
from hypothesis import strategies as st

from saelab.storage.manifest import digest_of

DEEP_LIST, DEEP_TABLE = "@deep list@", "@deep table@"
"""Stand for nesting as deep as the interpreter's stack allows; put in as text, since `json` refuses to write it."""

HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 4096, 2**31, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63)),
    *(10**400, 10**4300 - 1, 0.0, -0.0, 0.5, 1e308, 5e-324, float("nan"), float("inf")),
    *(
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
    ),
    *(
        "F32",
        "BF16",
        "BOOL",
        "I64",
        "bfloat16",
        "float32",
        "float64",
        "train",
        "heldout",
        "scale",
        "layer_norm",
    ),
    *("per_token", "per_batch", "per_feature", "threshold", "topk", "saelab-run", "0" * 32),
    *(
        [],
        {},
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
    ),
    *({"name": "threshold"}, {"name": "per_token", "k": 2**70}, {"bytes": 0, "blake2b": "0" * 32}, {"": {}}),
    *({"kind": "unit_norm", "factor": 1}, {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
    *(DEEP_LIST, DEEP_TABLE),
]
HOSTILE_BYTES = [
    b"",
    b"\0",
    b"\0" * 8,
    b"\xff" * 8,
    b"\xff" * 7 + b"\x7f",
    b"\0" * 7 + b"\x80",
    b"\0\0\xc0\x7f",
]
HOSTILE_BYTES += [
    b"{",
    b"}",
    b"[" * 3000,
    b'"',
    b"\\ud800",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"null,",
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


# Headers and manifests stand at the beginning, so small positions come more often.
_positions = st.integers(0, 500) | st.integers(0, 2**16)
_byte_edits = st.builds(
    ByteEdit,
    kind=st.sampled_from(["flip", "overwrite", "insert", "delete", "cut", "repeat"]),
    where=_positions,
    length=st.integers(1, 8) | st.integers(1, 4096),
    value=st.sampled_from(HOSTILE_BYTES) | st.binary(min_size=1, max_size=8),
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
    bytes_edits=st.lists(_byte_edits, min_size=1, max_size=3).map(tuple),
    value_edits=st.lists(_value_edits, min_size=1, max_size=3).map(tuple),
    slack=st.integers(0, 60),
)


def damaged_file(name: str, raw: bytes, damage: Damage) -> bytes:
    """Return the content of a file after the damage."""
    if damage.keeps_form:
        if name.endswith(".json"):
            return json_text(edited_values(json.loads(raw), damage), damage)
        if name.endswith(".safetensors"):
            return _edited_header(raw, damage)
        if name.endswith(".parquet"):
            return _edited_columns(raw, damage)
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
            container[key] = edit.value
        elif edit.kind == "copy":
            container[key] = json.loads(json.dumps(source[source_key]))
        elif edit.kind == "add":
            _add(container[key], source_key, edit.value)
        elif edit.kind == "delete" and container is not top:
            del container[key]
    return top[0]


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


def _edited_header(raw: bytes, damage: Damage) -> bytes:
    (length,) = struct.unpack("<Q", raw[:8])
    header = json_text(edited_values(json.loads(raw[8 : 8 + length]), damage), damage)
    header += b" " * (length - len(header))
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


def _edited_columns(raw: bytes, damage: Damage) -> bytes:
    """Edit a table's values, which may change the columns' types; sometimes put a column in twice."""
    columns = edited_values(pyarrow.parquet.read_table(io.BytesIO(raw)).to_pydict(), damage)
    try:
        table = pyarrow.table(columns)
        if damage.file % 8 == 0:
            table = table.append_column(table.schema.field(0), table.column(0))
        written = io.BytesIO()
        pyarrow.parquet.write_table(table, written)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError, AttributeError, IndexError):
        return edited_bytes(raw, damage)  # these values make no table
    return written.getvalue()


def _free_frames() -> int:
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1
    return sys.getrecursionlimit() - depth
