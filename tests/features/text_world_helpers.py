"""A corpus of known texts: every document a row of its own, so that what it gives does not hang on its neighbours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from saelab.lm.load import LanguageModel
from saelab.text.spec import TextSpec
from saelab.training.run import Run

HOOK = "blocks.1.hook_resid_post"
LONG = 7
"""A document that is longer than the context."""


@dataclass(frozen=True)
class TextWorld:
    """A run, its model and its text; the run has an index with codes."""

    run: Run
    lm: LanguageModel
    text: TextSpec
    documents: list[dict[str, str]]
    """What the text's file holds."""


def write_documents(path: Path) -> list[dict[str, str]]:
    """Write documents, of which the even ones have decorators and some have characters of several tokens."""
    found = []
    for number in range(48):
        lines = [f"def area_{number}(width, height):", f"    return width * height + {number}"]
        if number % 2 == 0:
            lines.insert(0, f"@cached_{number}")
        if number % 3 == 0:
            lines.append(f"# \N{SNOWMAN} {number} \N{GRINNING FACE} \u6f22\u5b57")
        text = "\n".join(lines * (6 if number == LONG else 1)) + "\n"
        found.append({"id": f"d{number}", "text": text, "kind": "even" if number % 2 == 0 else "odd"})
    path.write_text("".join(json.dumps(one) + "\n" for one in found))
    return found
