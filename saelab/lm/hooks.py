"""Hookpoints: the places of a model where activations are read and written, under both spellings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from saelab.errors import UsageError
from saelab.lm.patterns import compile_pattern, expand_braces, is_pattern
from saelab.storage.manifest import digest_of

_FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Hookpoint:
    """A place in a model."""

    module_path: str
    """Canonical name: the module's path and its side, for example ``model.layers.2.output``."""
    alias: str | None
    """TransformerLens name, for example ``blocks.2.hook_resid_post``, where there is one."""
    d_in: int
    """Width of the activations there."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its spellings, the canonical one first."""
        return (self.module_path,) if self.alias is None else (self.module_path, self.alias)


def resolve(name: str, hookpoints: Iterable[Hookpoint]) -> Hookpoint:
    """Find one hookpoint by either spelling.

    Raises:
        UsageError: There is none; the message offers the nearest names.
    """
    by_name = _by_name(hookpoints)
    if name not in by_name:
        raise UsageError(_no_match(name, by_name))
    return by_name[name]


def resolve_all(names: Iterable[str], hookpoints: Sequence[Hookpoint]) -> tuple[Hookpoint, ...]:
    """Find hookpoints by names and patterns, in either spelling.

    Args:
        names: ``blocks.6.hook_resid_post``, ``model.layers.*.output`` (``*`` stands for any letters
            but dots, ``**`` for dots too), ``blocks.{4..8}.hook_resid_post`` (both ends are meant),
            ``blocks.{0,2,5}.hook_*``.
        hookpoints: Those of the model, in the order of a forward pass.

    Returns:
        What any of the names selects, each once, in the order of ``hookpoints``.

    Raises:
        UsageError: A name, or one of those that its braces stand for, selects nothing; the message
            offers the nearest names.
    """
    by_name, chosen = _by_name(hookpoints), set()
    for name in (single for pattern in names for single in expand_braces(pattern)):
        if not is_pattern(name):
            chosen.add(resolve(name, hookpoints))
            continue
        matches = compile_pattern(name)
        found = {hookpoint for spelling, hookpoint in by_name.items() if matches(spelling)}
        if not found:
            raise UsageError(_no_match(name, by_name))
        chosen |= found
    return tuple(hookpoint for hookpoint in hookpoints if hookpoint in chosen)


def _by_name(hookpoints: Iterable[Hookpoint]) -> dict[str, Hookpoint]:
    return {name: hookpoint for hookpoint in hookpoints for name in hookpoint.names}


def _no_match(name: str, known: Iterable[str]) -> str:
    nearest = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))
    offer = f"the nearest are {nearest}" if nearest else "it has none at all"
    return f"the model has no hookpoint {name!r}; {offer}; `saelab hooks MODEL` lists all"


def slug(hookpoint: Hookpoint) -> str:
    """Return a name for files and folders: the module path, made safe where it is not already."""
    path = hookpoint.module_path
    if _FILE_NAME.fullmatch(path):
        return path
    # The digest keeps two names apart that differ only in what was replaced.
    safe = re.sub(r"[^\w.-]", "_", path, flags=re.ASCII).lstrip(".-")
    return f"{safe or 'hook'}-{digest_of(path.encode())[:8]}"
