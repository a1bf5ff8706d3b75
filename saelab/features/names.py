"""What a feature is called where nobody has named it: the plainest of its token statistics, with its share.

A name is display only. It says what was counted, in quotes and per cent, so that nobody takes it for an explanation.
The rules and their limits are ours: of token, family of tokens, token before and token after, the one that holds most
of the feature's activation is taken, the more specific one where they are close.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from saelab.features.records import TokenEffect, TokenShare
from saelab.text.vocabulary import Vocabulary

LONGEST = 60
ENOUGH = 0.5
"""Share of the activation that a token or a family must have to give the name."""
CLEARLY = 0.15
"""By how much a neighboring token's share must exceed that of the token itself."""
LONGEST_TOKEN = 16
SHOWN = 3
"""Tokens of a name at most; fewer where they are long, so that the share always has its place."""
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
        return max(around)[1]
    if strongest.share >= ENOUGH:
        return f"on {quoted(vocabulary.text(strongest.token))} ({strongest.share:.0%})"
    if (family := _family(facts.tokens, vocabulary)) is not None:
        return family
    if sum(one.share for one in facts.tokens[:SHOWN]) < ENOUGH / 2 and facts.promoted:
        return _fitting(f"promotes {shown}" for shown, _ in _fewer(facts.promoted, vocabulary))
    return _fitting(
        f"on {shown} ({sum(one.share for one in facts.tokens[:n]):.0%})"
        for shown, n in _fewer(facts.tokens, vocabulary)
    )


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
            return _fitting(f"on {name} {shown} ({share:.0%})" for shown, _ in _fewer(members, vocabulary))
    return None


def _fewer(
    tokens: Sequence[TokenShare] | Sequence[TokenEffect], vocabulary: Vocabulary
) -> Iterable[tuple[str, int]]:
    """Return the strongest tokens in quotes and how many they are, `SHOWN` first, then fewer, at last one."""
    shown = [quoted(vocabulary.text(one.token)) for one in tokens[:SHOWN]]
    return [(" ".join(shown[:n]), n) for n in range(len(shown), 0, -1)]


def _fitting(names: Iterable[str]) -> str:
    """Return the first name that is short enough; one token always is."""
    return next(name for name in names if len(name) <= LONGEST)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
