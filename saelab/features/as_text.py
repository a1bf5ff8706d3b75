"""Features as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from saelab.features.index import FeatureIndex
from saelab.features.records import Example
from saelab.text.vocabulary import Vocabulary

CONTEXT = 12
"""Tokens shown on either side of the active one."""


def features_as_text(index: FeatureIndex, features: Sequence[int], examples: int = 4) -> str:
    """Return the names of some features and their strongest examples.

    The active token stands in «guillemets», a newline is shown as ⏎, and any other character that
    could move the cursor or change the terminal is shown as its code.
    """
    lines = []
    for feature in features:
        row = index.row(feature)
        lines.append(f"feature {feature}  {_visible(row.shown_name)}  active on {row.density:.3%} of tokens")
        shown = index.examples(feature, "top", context=CONTEXT, limit=examples)
        lines.extend(f"  {one.activation:8.2f}  {example_line(one, index.vocabulary)}" for one in shown)
        if not shown:
            lines.append("  never active on these tokens")
    return "\n".join(lines)


def example_line(example: Example, vocabulary: Vocabulary) -> str:
    """Return an example as one line that is safe to print."""
    texts = [_visible(text) for text in vocabulary.display(example.tokens)]
    texts[example.peak] = f"«{texts[example.peak]}»"
    return "".join(texts)


def _visible(text: str) -> str:
    shown = text.replace("\r\n", "⏎").replace("\n", "⏎")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in shown
    )
