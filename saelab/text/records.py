"""Turn a record (a JSON object, a row of a table) into a document: its text or conversation, id and columns.

Two spellings of conversations are read: `messages`, a list of `{"role", "content"}`, and ShareGPT's
`conversations`, a list of `{"from", "value"}`. Both become turns with `role` and `content`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from saelab.errors import UsageError
from saelab.text.documents import ColumnValue, Document
from saelab.text.spec import CHAT_COLUMNS, TextSpec

ROLES_OF_SHAREGPT = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
"""Names of speakers in ShareGPT files, and the role that each plays."""


def document_of(record: Mapping[str, Any], spec: TextSpec, name: str, source: str, where: str) -> Document:
    """Read one record.

    Args:
        record: Its fields.
        spec: Which field holds the text and which are kept.
        name: The document's id, unless the record has one of its own.
        source: Where the document comes from, as it is recorded.
        where: The place of the record for messages, for example ``text: a.jsonl, line 3``.

    Raises:
        UsageError: The text is missing or is none, a turn is malformed, or a kept value is of another kind.
    """
    value = record.get(spec.column)
    messages = _turns(value, where) if spec.is_chat and isinstance(value, list) else ()
    if not messages and not (isinstance(value, str) and not spec.is_chat):
        raise UsageError(f"{where}: {_what_is_wrong(record, spec)}")
    own = record.get("id")
    identifier = name if own is None else str(own)
    text = value if isinstance(value, str) else ""
    columns = {column: _kept(record.get(column), column, where) for column in spec.keep_columns}
    _require_unicode(
        [identifier, text, *(value for value in columns.values() if isinstance(value, str))], where
    )
    return Document(id=identifier, text=text, source=source, messages=messages, columns=columns)


def fields_there(names: Iterable[str]) -> str:
    """Say which fields there are, for a message."""
    names = sorted(str(name) for name in names)
    if chat := [name for name in names if name in CHAT_COLUMNS]:
        return f"it holds conversations: read them with the column {chat[0]!r} and the packing `conversation`"
    return f"it has {', '.join(names) or 'no fields'}"


def _what_is_wrong(record: Mapping[str, Any], spec: TextSpec) -> str:
    if spec.column not in record:
        return f'no field "{spec.column}"; {fields_there(record)}'
    if spec.is_chat:
        return f'the field "{spec.column}" is not a list of turns'
    wrong = f'the field "{spec.column}" holds {_kind_of(record[spec.column])}, which is no text'
    if any(name in CHAT_COLUMNS for name in record):
        return f"{wrong}; {fields_there(record)}"
    texts = [name for name, value in record.items() if isinstance(value, str) and name != "id"]
    return f"{wrong}; text stands in {', '.join(texts)} (--column)" if texts else wrong


def _kind_of(value: Any) -> str:
    """Name a value's kind for somebody who sees the file and not Python."""
    if value is None:
        return "nothing"
    kinds = {bool: "truth values", int: "numbers", float: "numbers", Mapping: "tables", list: "lists"}
    found = (name for kind, name in kinds.items() if isinstance(value, kind))
    return next(found, f"values of type {type(value).__name__}")


def _turns(value: list[Any], where: str) -> tuple[Mapping[str, Any], ...]:
    if not value:
        raise UsageError(f"{where}: the conversation has no turns")
    return tuple(_turn(turn, f"{where}, turn {number}") for number, turn in enumerate(value, start=1))


def _turn(turn: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(turn, Mapping):
        raise UsageError(f"{where}: not a table with role and content")
    # Tables give every field to every turn, with nothing in most.
    turn = {key: part for key, part in turn.items() if part is not None}
    if "role" not in turn and "from" in turn:
        speaker = str(turn.pop("from")).lower()
        if speaker not in ROLES_OF_SHAREGPT:
            raise UsageError(f"{where}: unknown speaker {speaker!r}; known: {', '.join(ROLES_OF_SHAREGPT)}")
        turn = {"role": ROLES_OF_SHAREGPT[speaker], "content": turn.pop("value", ""), **turn}
    role, content = turn.get("role"), turn.get("content", "")
    if not isinstance(role, str) or not role:
        raise UsageError(f"{where}: the turn has no role; it has {', '.join(sorted(turn)) or 'nothing'}")
    if isinstance(content, list):
        content = "".join(_text_part(part, where) for part in content)
    if not isinstance(content, str):
        raise UsageError(f"{where}: the content is not text")
    turn = {**turn, "role": role, "content": content}
    try:  # as JSON, in which further fields are hashed and handed to the template
        _require_unicode([json.dumps(turn, ensure_ascii=False, allow_nan=False)], where)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: a field of the turn is not JSON ({error})") from error
    return turn


def _text_part(part: Any, where: str) -> str:
    if isinstance(part, Mapping) and isinstance(text := part.get("text"), str):
        return text
    raise UsageError(f"{where}: the content has a part that is not text; images and sounds are not read")


def _kept(value: Any, column: str, where: str) -> ColumnValue:
    if value is None or isinstance(value, bool | str) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, float) and not math.isinf(value):
        return None if math.isnan(value) else value
    raise UsageError(
        f"{where}: the kept column {column!r} is {type(value).__name__} {str(value)[:40]!r}; "
        "only text, finite numbers and truth values are kept"
    )


def _require_unicode(texts: Iterable[str], where: str) -> None:
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where}: the text holds half of a surrogate pair and is not Unicode") from error
