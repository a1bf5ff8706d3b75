"""Render conversations through a tokenizer's chat template, and tell which role each token belongs to.

Tokens are those of the whole rendered text, exactly as `transformers` makes them, with two exceptions:

- A row begins with the tokenizer's BOS exactly once, whether the template writes it, writes it
  twice or leaves it out. A tokenizer that has no BOS gets none.
- Where a turn's text spells a special token, that one token is replaced by the plain tokens of its
  spelling, so that nobody can write a turn's end into a turn. Everything around it stays as it was.
  This needs to know where the turn stands: see below for when that fails, which is counted.

Roles come from a skeleton: the same conversation rendered with a mark in place of each turn's text.
What stands between the marks is the template's own text; it is found again in the rendered text, and
the turns with it, also where the template strips them, joins them (a system turn inside the first
user turn) or adds a default system prompt. Where a template treats some content in a way of its own,
the turn's text is looked for instead; a turn that is not found counts as template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saelab.errors import UsageError
from saelab.text.documents import Document
from saelab.text.spec import TextSpec
from saelab.text.tokens import own_bos_token_id, special_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("template", "system", "user", "assistant", "tool")
"""What a token belongs to; its code is the place in this list. All that no turn says is template."""
SPECIAL = 0x80
"""Added to the role's code for special tokens."""
_CODES = {name: code for code, name in enumerate(ROLES)} | {
    "developer": 1,
    "function": 4,
    "ipython": 4,
    "model": 3,
}
# Some templates print the day's date: a text must not depend on when it is read. In Jinja, since
# `transformers` lets nothing else into a template.
_DAY = {
    "%Y": "2024",
    "%y": "24",
    "%m": "07",
    "%B": "July",
    "%b": "Jul",
    "%d": "26",
    "%-d": "26",
    "%A": "Friday",
}
_DAY |= {"%a": "Fri", "%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM", "%j": "208"}
_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('{code}', '{value}')" for code, value in _DAY.items())
    + " }}{%- endmacro -%}"
)
_MARK = re.compile(r"qZx(\d{6})xZq")
_MAX_SKELETONS = 1000

Turns = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Rendered:
    """The tokens of one conversation."""

    ids: NDArray[np.int32]
    """Token ids, BOS first where the tokenizer has one, `[n]`."""
    roles: NDArray[np.uint8]
    """Role of each token as a code of `ROLES`, with `SPECIAL` added for special tokens, `[n]`."""


class ChatRenderer:
    """Turns conversations into tokens; counts what it could not do.

    Args:
        tokenizer: A fast tokenizer.
        template: A Jinja chat template; None takes the tokenizer's own.

    Raises:
        UsageError: The tokenizer has no template and none was given.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        try:
            self.template = template or tokenizer.get_chat_template()
        except ValueError as error:
            raise UsageError(
                "packing: the tokenizer has no chat template, which conversations need; "
                "give one as a file (--chat-template FILE)"
            ) from error
        self._program = _CLOCK + self.template if "strftime_now" in self.template else self.template
        self.refused = 0
        self.first_refusal = ""
        self.turns_not_found = 0
        self._tokenizer = tokenizer
        self._bos = own_bos_token_id(tokenizer)
        self._special = special_token_ids(tokenizer)
        self._skeletons: dict[str, str] = {}

    def tokenize(self, documents: Sequence[Document]) -> list[Rendered | None]:
        """Return the tokens of each conversation; None for one that the template refuses.

        Raises:
            UsageError: A document is no conversation.
        """
        rendered: list[tuple[str, NDArray[np.uint8]] | None] = []
        for document in documents:
            if not document.messages:
                raise UsageError(
                    f"packing: document {document.id!r} is no conversation; read the column `messages`, "
                    "or choose the packing packed or document"
                )
            rendered.append(self._render(document))
        texts = [part[0] for part in rendered if part is not None]
        encoded = iter(self._encode(texts) if texts else ())
        return [None if part is None else self._aligned(*part, *next(encoded)) for part in rendered]

    def notes(self) -> tuple[str, ...]:
        """Say what was left out or could not be told."""
        notes = []
        if self.refused:
            notes.append(
                f"{self.refused:,} conversations were left out because the chat template refuses them "
                f"({self.first_refusal})"
            )
        if self.turns_not_found:
            notes.append(
                f"{self.turns_not_found:,} turns were not found in what the chat template made of them; "
                "their tokens count as template"
            )
        return tuple(notes)

    def _render(self, document: Document) -> tuple[str, NDArray[np.uint8]] | None:
        try:
            text = self._apply(document.messages)
            skeleton = self._skeleton(document.messages)
        except Exception as error:  # templates are programs: they raise what they like
            self.refused += 1
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.first_refusal = self.first_refusal or f"document {document.id!r}: {lines[0].rstrip('.')}"
            return None
        roles = np.zeros(len(text) + 1, dtype=np.uint8)
        for start, stop, turn in self._places(text, skeleton, document.messages):
            roles[start:stop] = _CODES.get(document.messages[turn]["role"], 0)
        return text, roles

    def _apply(self, messages: Turns) -> str:
        found = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=self._program,
            tokenize=False,
        )
        return str(found)

    def _skeleton(self, messages: Turns) -> str:
        """Render with a mark in place of each text; empty texts stay, since templates look at that."""
        marked = [
            {**message, "content": f"qZx{number:06d}xZq" if message["content"] else ""}
            for number, message in enumerate(messages)
        ]
        key = json.dumps(marked, sort_keys=True)
        if key not in self._skeletons:
            if len(self._skeletons) >= _MAX_SKELETONS:
                self._skeletons.clear()
            self._skeletons[key] = self._apply(marked)
        return self._skeletons[key]

    def _places(self, text: str, skeleton: str, messages: Turns) -> list[tuple[int, int, int]]:
        """Return start and stop of each turn's text in the rendered text, with the number of the turn."""
        parts = _MARK.split(skeleton)
        between, turns = parts[::2], [int(number) for number in parts[1::2]]
        places, position = [], 0
        for number, turn in enumerate(turns):
            place = _place(text, position, between[number], messages[turn]["content"], between[number + 1 :])
            if place is not None:
                places.append((*place, turn))
                position = place[1]
        spoken = {number for number, message in enumerate(messages) if message["content"].strip()}
        self.turns_not_found += len(spoken - {turn for _, _, turn in places})
        return places

    def _encode(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        encoded = self._tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))

    def _aligned(
        self,
        text: str,
        roles_of_characters: NDArray[np.uint8],
        ids: list[int],
        offsets: list[tuple[int, int]],
    ) -> Rendered:
        tokens = np.array(ids, dtype=np.int32)
        roles = _roles_of_tokens(roles_of_characters, np.array(offsets, dtype=np.int64).reshape(-1, 2))
        special = np.isin(tokens, self._special)
        pieces, all_roles, done = [], [], 0
        for place in np.flatnonzero(special):
            start, stop = offsets[place]
            spelled = text[start:stop]
            # Some special tokens swallow the spaces around them: what counts is who spelled them.
            speaker = int(roles_of_characters[start + len(spelled) - len(spelled.lstrip())])
            roles[place] = speaker
            if speaker == 0:
                continue
            plain = self._tokenizer(
                spelled, add_special_tokens=False, split_special_tokens=True, verbose=False
            )
            plain_ids = np.array(plain["input_ids"], dtype=np.int32)
            pieces += [tokens[done:place], plain_ids]
            all_roles += [roles[done:place], np.full(len(plain_ids), speaker, dtype=np.uint8)]
            done = int(place) + 1
        tokens = np.concatenate([*pieces, tokens[done:]])
        roles = np.concatenate([*all_roles, roles[done:]])
        roles[np.isin(tokens, self._special)] |= SPECIAL
        return self._with_bos(tokens, roles)

    def _with_bos(self, ids: NDArray[np.int32], roles: NDArray[np.uint8]) -> Rendered:
        if self._bos is None:
            return Rendered(ids, roles)
        others = np.flatnonzero(ids != self._bos)
        first = int(others[0]) if len(others) else len(ids)
        return Rendered(
            np.concatenate([[np.int32(self._bos)], ids[first:]]).astype(np.int32),
            np.concatenate([[np.uint8(SPECIAL)], roles[first:]]).astype(np.uint8),
        )


def chat_template_of(spec: TextSpec) -> str | None:
    """Return the chat template that is given as a file; None where the tokenizer's own is to be taken.

    Raises:
        UsageError: The file cannot be read, or is not text.
    """
    if spec.chat_template is None:
        return None
    try:
        return Path(spec.chat_template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"text: cannot read the chat template {spec.chat_template}: {error}") from error


def _place(
    text: str, position: int, before: str, content: str, after: Sequence[str]
) -> tuple[int, int] | None:
    """Find a turn's text behind what the template writes before it."""
    following, is_last = after[0], len(after) == 1
    start, short = position, content.strip()
    if text.startswith(before, position):
        start += len(before)
        for candidate in (content, short, content.lstrip(), content.rstrip()):
            stop = start + len(candidate)
            is_followed = text.startswith(following, stop)
            if (
                text.startswith(candidate, start)
                and is_followed
                and (not is_last or text[stop:] == following)
            ):
                return start, stop
        if short and text.startswith(short, start):  # but what follows hangs on the next turn's text
            return start, start + len(short)
        stop = len(text) - len(following) if is_last else text.find(following, start)
        if following and stop >= start and text.startswith(following, stop):  # the template shortened it
            return start, stop
    found = text.find(short, start) if short else -1
    return (found, found + len(short)) if found >= 0 else None


def _roles_of_tokens(roles: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A token belongs to the first turn that any of its characters belongs to, else to the template."""
    last = len(roles) - 1
    indices = np.where(roles != 0, np.arange(len(roles)), last)
    next_turn = np.minimum.accumulate(indices[::-1])[::-1]
    starts, stops = offsets[:, 0], offsets[:, 1]
    first = next_turn[starts]
    # A token without characters of its own, such as a space that the tokenizer adds, goes with what follows.
    return np.where(first < np.maximum(stops, starts + 1), roles[first], 0).astype(np.uint8)
