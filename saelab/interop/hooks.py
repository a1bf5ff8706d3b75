"""From the place that a foreign file names to a hookpoint of ours.

With a model its own hookpoints decide. Without one, names of TransformerLens become module paths where the
model's name tells its family; otherwise the foreign name stands as it is, and the SAE can be used on activations alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from saelab.errors import UsageError
from saelab.lm.families import transformer_lens_names
from saelab.lm.hooks import Hookpoint, resolve

_FAMILY_OF = (
    (r"(openai-community/)?gpt2(-(small|medium|large|xl))?", "gpt2"),
    (r"(EleutherAI/)?pythia-.*", "gpt_neox"),
    (r"(google/)?gemma-2-.*", "gemma2"),
    (r"(meta-llama/)?(Meta-)?Llama-3.*", "llama"),
    (r"(mistralai/)?Mistral-7B.*", "mistral"),
)
_NUMBER = re.compile(r"\.(\d{1,4})(?:\.|$)")
_TRANSFORMER_LENS = re.compile(r"(blocks\.\d+\.|hook_|ln_final\.)")


def find_hookpoint(name: str, hookpoints: Sequence[Hookpoint]) -> Hookpoint:
    """Find a foreign name among a model's hookpoints.

    Args:
        name: A name of TransformerLens, a module path with its side, or the end of one (``layers.6.output``).
        hookpoints: Those of the model.

    Raises:
        UsageError: None of them is meant, or more than one.
    """
    for spelling in (name, f"{name}.output"):
        exact = [point for point in hookpoints if spelling in point.names]
        ending = [point for point in hookpoints if point.module_path.endswith(f".{spelling}")]
        found = exact or ending
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(
                f"{name!r} may mean {' or '.join(point.module_path for point in found[:4])}; say it with --at"
            )
    return resolve(name, hookpoints)  # it has the message that offers what is near


def spelled_without_model(name: str, model: str | None) -> tuple[str, str]:
    """Return the module path and the TransformerLens name of a place in either spelling, as far as names alone tell.

    Args:
        name: What the foreign file calls the place.
        model: What it calls the model.

    Returns:
        The foreign name where the family is not known.
    """
    family, number = _family(model), _NUMBER.search(name)
    aliases = {} if family is None else transformer_lens_names(family, int(number[1]) + 1 if number else 1)
    for path, alias in aliases.items():
        if name in (path, alias):
            return path, alias
    return name, name if _TRANSFORMER_LENS.match(name) else ""


def _family(model: str | None) -> str | None:
    return next((kind for pattern, kind in _FAMILY_OF if model and re.fullmatch(pattern, model)), None)
