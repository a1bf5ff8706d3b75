"""Examples of a feature as rows of tokens, in groups that say what they are and how much they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saelab.features.records import Example, FeatureView
from saelab.text.vocabulary import Vocabulary
from saelab.viz.feature_numbers import percent
from saelab.viz.tokens import TokenRow, number_text


@dataclass(frozen=True)
class ExampleGroup:
    """Examples that were chosen in the same way."""

    key: str
    """``top``, ``interval-3``, ``random``, ``near-miss`` or ``non-active``."""
    title: str
    note: str
    """How they were chosen; plain text."""
    rows: tuple[TokenRow, ...]
    hidden: int
    """Examples that say the same as one before, with the same 8 tokens on either side."""


def example_groups(
    view: FeatureView, vocabulary: Vocabulary, *, most: int | None = None, duplicates: bool = False
) -> list[ExampleGroup]:
    """Return the examples of a feature by group, strongest first, groups without examples left out.

    Args:
        view: What the index knows of the feature.
        vocabulary: Its tokens.
        most: Examples of a group at most.
        duplicates: Show examples with equal surroundings too.
    """

    def group(key: str, title: str, note: str, examples: Sequence[Example]) -> ExampleGroup:
        first = {one.window_hash: one for one in reversed(examples)}
        shown = list(examples) if duplicates else [one for one in examples if first[one.window_hash] is one]
        rows = [example_row(one, vocabulary, f"Example {n + 1}") for n, one in enumerate(shown[:most])]
        return ExampleGroup(key, title, note, tuple(rows), len(examples) - len(shown))

    found = [group("top", "Strongest", "at most one of a document", view.examples.get("top", ()))]
    intervals, n_fires = view.detail.intervals, view.row.n_fires
    for number in reversed(range(len(intervals.counts))):
        chosen = [one for one in view.examples.get("interval", ()) if one.bin == number]
        title = f"{number_text(intervals.edges[number])} to {number_text(intervals.edges[number + 1])}"
        count = intervals.counts[number]
        note = f"drawn from {count:,} of {n_fires:,} firings ({percent(count / max(1, n_fires))})"
        chosen.sort(key=lambda one: -one.activation)
        found.append(group(f"interval-{number}", title, note, chosen))
    others = (
        ("random", "Random", "drawn from all tokens on which it is active"),
        ("near-miss", "Near misses", "not active, and nearest to it; the number is what the encoder gave"),
        ("non-active", "Not active", "the strongest example's token where the feature is not active"),
    )
    found += [group(key, title, note, view.examples.get(key, ())) for key, title, note in others]
    return [one for one in found if one.rows]


def example_row(example: Example, vocabulary: Vocabulary, title: str) -> TokenRow:
    """Return an example as a row of tokens."""
    return TokenRow(
        texts=tuple(vocabulary.display(example.tokens)),
        values=example.activations,
        title=title,
        note=number_text(example.activation),
        peak=example.peak,
        raw=tuple(vocabulary.bytes_of(token) for token in example.tokens),
        special=tuple(vocabulary.is_special(token) for token in example.tokens),
    )
