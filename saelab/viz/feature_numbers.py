"""What each number of a feature is, in a sentence that a reader of the card can rely on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from saelab.features.records import FeatureRow
from saelab.text.vocabulary import Vocabulary
from saelab.viz.tokens import number_text
from saelab.viz.visible import visible_text

LONGEST = 20
"""Characters of a token beside a number; more would push the table apart."""


@dataclass(frozen=True)
class Explained:
    """A number with its name and what it means."""

    name: str
    value: str
    meaning: str


Value = Callable[[FeatureRow], float | None]
_NUMBERS: tuple[tuple[str, Value, str], ...] = (
    ("largest activation", lambda row: row.max_act, "on any kept token of the corpus"),
    ("mean", lambda row: row.mean_active, "over the tokens on which it was active; zeros are not counted"),
    ("median", lambda row: row.p50, "half of its activations are below"),
    ("90 % quantile", lambda row: row.p90, "nine tenths are below"),
    ("99 % quantile", lambda row: row.p99, "99 of 100 are below"),
    ("standard deviation", lambda row: row.std_active, "of the activations where active"),
    ("skewness", lambda row: row.skew, "above 0: many weak activations and a few strong ones"),
    (
        "excess kurtosis",
        lambda row: row.kurtosis,
        "0 for a normal distribution; large: rare, very strong ones",
    ),
    (
        "decoder norm",
        lambda row: row.decoder_norm,
        "length of what an activation of 1 adds to the reconstruction",
    ),
    (
        "encoder-decoder cosine",
        lambda row: row.encoder_decoder_cosine,
        "1: it reads along the direction that it writes",
    ),
    ("encoder bias", lambda row: row.encoder_bias, "added before the activation; lower: harder to activate"),
    ("threshold", lambda row: row.threshold, "what the encoder must exceed at inference"),
    ("nearest decoder cosine", lambda row: row.max_decoder_cosine, "with the most similar other feature"),
)
_SHARES: tuple[tuple[str, Callable[[FeatureRow], tuple[int | None, float | None]], str], ...] = (
    (
        "strongest token",
        lambda row: (row.top_token, row.top_token_share),
        "share of its activation on this token",
    ),
    (
        "token before",
        lambda row: (row.previous_token, row.previous_token_share),
        "share of its activation right after this token",
    ),
    (
        "token after",
        lambda row: (row.next_token, row.next_token_share),
        "share of its activation right before this token",
    ),
)


def explained_numbers(row: FeatureRow, vocabulary: Vocabulary) -> list[Explained]:
    """Return the numbers of a feature that are defined, each explained."""
    found = [
        Explained(name, number_text(value(row)), meaning)
        for name, value, meaning in _NUMBERS
        if value(row) is not None
    ]
    for name, value, meaning in _SHARES:
        token, share = value(row)
        if token is not None and share is not None:
            text = visible_text(vocabulary.text(token), spaces=True)
            text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
            found.append(Explained(name, f'"{text}" {percent(share)}', meaning))
    if row.first_position_share is not None:
        meaning = "share of its activation on the first kept token of rows"
        found.append(Explained("first position", percent(row.first_position_share), meaning))
    return found


def fired_line(row: FeatureRow, n_tokens: int) -> str:
    """Return how often a feature was active; for one that never was, what that says of its density.

    No event in N tokens leaves densities below 3 / N with 95 % confidence, were the tokens independent (the rule of
    three, since (1 - 3 / N)^N is about exp(-3) = 5 %).
    """
    if row.n_fires == 0:
        if n_tokens == 0:
            return "No tokens were indexed."
        return (
            f"Never fired in {n_tokens:,} tokens: density below {number_text(3 / n_tokens)} with 95 % confidence "
            "(3 / N, as if tokens were independent). More tokens may find it: saelab index RUN --tokens N."
        )
    return (
        f"Fired on {row.n_fires:,} of {n_tokens:,} tokens (density {percent(row.density)}), in "
        f"{row.n_documents:,} document{'' if row.n_documents == 1 else 's'}."
    )


def percent(share: float) -> str:
    """Return a share in per cent, with three digits."""
    return f"{100 * share:.3g} %" if share else "0 %"
