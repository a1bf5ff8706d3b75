"""What another tool calls an index's model, SAE and corpus: from the options, else from the index's manifest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from saelab.errors import UsageError
from saelab.features.export.facts import clean
from saelab.features.export.options import NAME, IndexExportOptions
from saelab.features.index import FeatureIndex
from saelab.features.labels.neuronpedia import Source

_LAYER = re.compile(r"\.(\d+)\.")
_NOT_IN_NAMES = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True, kw_only=True)
class Names:
    """What is what in the other tool."""

    model: str
    """Id of the language model."""
    layer: int
    """Layer of the hookpoint."""
    hook: str
    """Its name, TransformerLens's where there is one; empty where it is not known."""
    sae_set: str
    """The set of SAEs."""
    suffix: str
    """Tells SAEs of one layer and set apart; may be empty."""
    dataset: str
    """The corpus."""
    n_prompts: int
    """Rows of tokens."""
    n_tokens_in_prompt: int
    """Tokens of the longest row."""

    @property
    def source(self) -> Source:
        """The SAE's names on Neuronpedia: layer and set, and behind two underscores the suffix."""
        suffix = f"__{self.suffix}" if self.suffix else ""
        return Source(model_id=self.model, source_id=f"{self.layer}-{self.sae_set}{suffix}")


def names_of(index: FeatureIndex, options: IndexExportOptions) -> Names:
    """Return the names of an index.

    Raises:
        UsageError: The model or the layer is not known, and the options do not say it.
    """
    options.check()
    content = index.manifest.content
    sae, model, corpus = (_entry(content, name) for name in ("sae", "model", "corpus"))
    hook = _first(sae.get("hook_aliases")) or _first(sae.get("input_hooks"))
    name = options.model_id or _NOT_IN_NAMES.sub(
        "-", PurePosixPath(str(model.get("name") or "")).name.lower()
    )
    if not NAME.fullmatch(name):
        raise UsageError("export: the index does not know its language model; name it with model_id")
    found = _LAYER.search(hook)
    if options.layer is None and found is None:
        raise UsageError(f"export: the hookpoint {hook!r} names no layer; give the number with layer")
    return Names(
        model=name,
        layer=options.layer if options.layer is not None else int(found[1]) if found else 0,
        hook=hook,
        sae_set=options.sae_set,
        suffix=options.suffix,
        dataset=clean(options.dataset or str(corpus.get("source") or "")),
        n_prompts=len(index.row_starts) - 1,
        n_tokens_in_prompt=int(np.diff(index.row_starts).max()),
    )


def _entry(content: dict[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def _first(names: object) -> str:
    return names[0] if isinstance(names, list | tuple) and names and isinstance(names[0], str) else ""
