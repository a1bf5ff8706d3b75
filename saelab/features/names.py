"""What a feature is called where nobody has named it: the plainest of its token statistics, with its share.

A name is display only. It says what was counted, in quotes and per cent, so that nobody takes it for an explanation.
The rules and their limits are ours: of token, family of tokens, token before and token after, the one that holds most
of the feature's activation is taken, the more specific one where they are close.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saelab.features.records import TokenEffect, TokenShare
from saelab.text.vocabulary import Vocabulary

LONGEST = 60
ENOUGH = 0.5
"""Share of the activation that a token or a family must have to give the name."""
CLEARLY = 0.15
"""By how much a neighboring token's share must exceed that of the token itself."""
LONGEST_TOKEN = 16
_SIGNS = {
    " ": "\N{OPEN BOX}",
    "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}",
    "\t": "\N{RIGHTWARDS ARROW}",
}


@dataclass(frozen=True)
class NameFacts:
    """What a name is made of."""

    n_fires: int
    """Tokens on which the feature was active."""
    tokens: Sequence[TokenShare]
    """Tokens with most of its activation, strongest first."""
    previous: tuple[int, float] | None
    """The token that stands before most often, and its share."""
    next: tuple[int, float] | None
    """The token that follows most often, and its share."""
    first_position_share: float | None
    """Share on the first kept position of rows."""
    promoted: Sequence[TokenEffect]
    """Tokens whose logits it raises most, strongest first; empty where that is not known."""


def name_of(facts: NameFacts, vocabulary: Vocabulary) -> str:
    """Return a name of one line and at most 60 characters."""
    if not facts.n_fires or not facts.tokens:
        return "never active"
    if facts.first_position_share is not None and facts.first_position_share >= ENOUGH:
        return f"on first positions ({facts.first_position_share:.0%})"
    strongest = facts.tokens[0]
    around = [
        (pair[1], f"{where} {quoted(vocabulary.text(pair[0]))} ({pair[1]:.0%})")
        for where, pair in (("after", facts.previous), ("before", facts.next))
        if pair is not None and pair[1] >= ENOUGH and pair[1] >= strongest.share + CLEARLY
    ]
    if around:
        return _cut(max(around)[1])
    if strongest.share >= ENOUGH:
        return _cut(f"on {quoted(vocabulary.text(strongest.token))} ({strongest.share:.0%})")
    if (family := _family(facts.tokens, vocabulary)) is not None:
        return _cut(family)
    shown = " ".join(quoted(vocabulary.text(one.token)) for one in facts.tokens[:3])
    share = sum(one.share for one in facts.tokens[:3])
    if share < ENOUGH / 2 and facts.promoted:
        promoted = " ".join(quoted(vocabulary.text(one.token)) for one in facts.promoted[:3])
        return _cut(f"promotes {promoted}")
    return _cut(f"on {shown} ({share:.0%})")


def quoted(text: str) -> str:
    """Return a token's text in quotes, on one line: blanks as signs, what cannot be seen as its code."""
    inside = text.strip(" ") or text
    shown = "".join(_shown(character) for character in inside)
    return f'"{_cut(shown, LONGEST_TOKEN)}"'


def _shown(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    if unicodedata.category(character)[0] in "CZ":
        return f"U+{ord(character):04X}"
    return character


def _family(tokens: Sequence[TokenShare], vocabulary: Vocabulary) -> str | None:
    """Name what most of the strongest tokens have in common."""
    texts = {one.token: vocabulary.text(one.token) for one in tokens}
    kinds: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("digits", lambda text: text.strip().isdigit()),
        ("white space", lambda text: text != "" and text.isspace()),
        ("punctuation", lambda text: text.strip() != "" and not any(map(str.isalnum, text))),
        ("CAPITALS", lambda text: len(text.strip()) > 1 and text.strip().isupper()),
        ("Capitalised words", lambda text: text.strip()[:1].isupper()),
    )
    words: dict[str, float] = {}
    for one in tokens:
        word = texts[one.token].strip().casefold()
        words[word] = words.get(word, 0.0) + one.share
    word, share = max(words.items(), key=lambda item: item[1])
    if word and share >= ENOUGH:
        return f"on {quoted(word)} in all spellings ({share:.0%})"
    for name, belongs in kinds:
        members = [one for one in tokens if belongs(texts[one.token])]
        share = sum(one.share for one in members)
        if share >= ENOUGH:
            shown = " ".join(quoted(texts[one.token]) for one in members[:3])
            return f"on {name} {shown} ({share:.0%})"
    return None


def _cut(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
