"""What bytes a token stands for, by the kind of its tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rule = Callable[[str, bool], bytes | None]
"""Bytes of a token from its name in the vocabulary and whether it was added beside the model; None if it is unknown."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def find_rule(tokenizer: PreTrainedTokenizerBase) -> Rule | None:
    """Return how names of a tokenizer's vocabulary become bytes; None where the tokenizer does not say.

    Read from the decoder that the tokenizer declares, never guessed from its class.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    declared = json.loads(backend.to_str())
    decoders = {str(one.get("type")): one for one in _flat(declared.get("decoder"))}
    if "ByteLevel" in decoders:
        return _byte_level
    if "WordPiece" in decoders:
        prefix = str(decoders["WordPiece"].get("prefix", "##"))
        return lambda name, added: name.encode() if added else _word_piece(name, prefix)
    mark = _space_mark(declared.get("decoder"))
    if mark is not None:
        with_bytes = "ByteFallback" in decoders or bool((declared.get("model") or {}).get("byte_fallback"))
        return lambda name, added: _piece(name, mark, with_bytes=with_bytes and not added)
    return None


def _flat(decoder: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return
    if decoder.get("type") == "Sequence":
        for one in decoder.get("decoders") or ():
            yield from _flat(one)
    else:
        yield decoder


def _space_mark(decoder: Any) -> str | None:
    """Return the character that stands for a space in a SentencePiece vocabulary."""
    for one in _flat(decoder):
        if one.get("type") == "Metaspace":
            return str(one.get("replacement", "\N{LOWER ONE EIGHTH BLOCK}"))
        pattern = one.get("pattern")
        if one.get("type") == "Replace" and one.get("content") == " " and isinstance(pattern, dict):
            return None if pattern.get("String") is None else str(pattern["String"])
    return None


def _piece(name: str, mark: str, *, with_bytes: bool) -> bytes:
    if with_bytes and (byte := _BYTE.fullmatch(name)):
        return bytes([int(byte[1], 16)])
    return name.replace(mark, " ").encode(errors="replace")


def _word_piece(name: str, prefix: str) -> bytes:
    if prefix and name.startswith(prefix) and name != prefix:
        return name[len(prefix) :].encode()
    return (f" {name}" if name[:1].isalnum() else name).encode()


def _byte_level(name: str, added: bool) -> bytes:
    if added or any(character not in _BYTES for character in name):
        return name.encode(errors="replace")
    return bytes(_BYTES[character] for character in name)


def _byte_characters() -> dict[str, int]:
    """Return the byte of each character of byte-level BPE: printable ones stand for themselves, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_characters()
