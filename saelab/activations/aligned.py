"""Several stores of the same tokens as one source: for a dictionary that two models share.

The first store's hookpoints keep their names; those of the second are named ``2:model.layers.6.output``
(``2:blocks.6.hook_resid_post``), of the third ``3:...``. Numbers, not folders or models: a run that is resumed
finds the same names wherever the stores lie by then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from saelab.activations import layout
from saelab.activations.facts import find_hook
from saelab.activations.source import ActivationSource, Order, RowStream, StorePass, StoreSource, spread_tiles
from saelab.activations.statistics import HookStatistics
from saelab.activations.store import Store
from saelab.activations.stream import POOL_BYTES, widest_row_bytes
from saelab.errors import UsageError
from saelab.interrupts import StopRequest
from saelab.lm.identity import ModelIdentity
from saelab.storage.manifest import digest_of


@dataclass(frozen=True)
class AlignedHook:
    """A hookpoint of one of several stores."""

    module_path: str
    """Its module path, behind the number of its store where that is not the first."""
    alias: str | None
    """Its TransformerLens name alike."""
    d_in: int
    """Width of the activations."""
    has_gradients: bool
    """Whether its store has gradients beside them."""


def open_stores(paths: Sequence[Path | str]) -> ActivationSource:
    """Open one store, or several of the same tokens side by side.

    Raises:
        DamagedFileError: One was never finished, or is not sound.
        UsageError: They do not hold the same tokens.
    """
    return source_of([Store.open(path) for path in paths])


def source_of(stores: Sequence[Store]) -> ActivationSource:
    """Return one store, or several of the same tokens side by side, as a source.

    Raises:
        UsageError: They do not hold the same tokens.
    """
    return StoreSource(stores[0]) if len(stores) == 1 else AlignedSource(stores)


class AlignedSource:
    """The training rows of several stores of the same tokens; row i of each is about the same token.

    Args:
        stores: At least two.

    Raises:
        UsageError: They do not hold the same tokens.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)
        for other in self.stores[1:]:
            _require_aligned(self.stores[0], other)
        self._hooks: dict[str, AlignedHook] = {}
        self._places: dict[str, tuple[Store, str]] = {}
        for number, store in enumerate(self.stores, 1):
            for hook in store.hooks:
                alias = None if hook.alias is None else _numbered(number, hook.alias)
                path = _numbered(number, hook.module_path)
                named = AlignedHook(path, alias, hook.d_in, hook.has_gradients)
                self._hooks[named.module_path] = named
                self._places[named.module_path] = (store, hook.module_path)
        self._row_bytes = max(widest_row_bytes(store) for store in self.stores)

    @property
    def identity(self) -> str:
        return digest_of(json.dumps([store.identity for store in self.stores]).encode())

    @property
    def earlier_identities(self) -> tuple[str, ...]:
        return ()

    @property
    def model_identity(self) -> ModelIdentity | None:
        return joint_identity([store.model_identity for store in self.stores])

    @property
    def hooks(self) -> tuple[AlignedHook, ...]:
        return tuple(self._hooks.values())

    def hook(self, name: str | None) -> AlignedHook:
        return find_hook(self.hooks, name, " with ".join(str(store.path) for store in self.stores))

    def prepare(self, stop: StopRequest, *, quiet: bool) -> None:
        """Nothing: stores know their statistics."""

    def statistics(self, hook: str) -> HookStatistics:
        store, name = self._places[hook]
        return store.statistics(name)

    def spread_rows(self, hooks: Sequence[str], rows: int) -> Iterator[dict[str, Tensor]]:
        def read(start: int, stop: int) -> dict[str, Tensor]:
            places = {hook: self._places[hook] for hook in hooks}
            return {hook: store.rows(name, "train", start, stop).x for hook, (store, name) in places.items()}

        yield from spread_tiles(self.stores[0].row_map.count("train"), rows, read)

    def default_pool_rows(self, hook: str) -> int:
        return POOL_BYTES // self._row_bytes

    def pool_bytes(self, hooks: Iterable[str], pool_rows: int) -> int:
        places = [self._places[hook] for hook in hooks]
        return sum(StoreSource(store).pool_bytes([name], pool_rows) for store, name in places)

    def open(self, hooks: Sequence[str], order: Order, position: dict[str, Any] | None) -> RowStream:
        return StorePass({hook: self._places[hook] for hook in hooks}, order, position, self._row_bytes)

    def describe(self, folder: Path) -> dict[str, Any]:
        first, *others = (os.path.relpath(store.path.resolve(), folder.resolve()) for store in self.stores)
        models = [store.model_identity for store in self.stores]
        return {
            "store": first,
            "aligned_stores": others,
            "models": [None if model is None else model.to_json() for model in models],
            "source_identity": self.identity,
        }


def joint_identity(models: Sequence[ModelIdentity | None]) -> ModelIdentity | None:
    """Return the identity of several models taken together, in order; that of the one where they are the same.

    What was made from two models belongs to neither alone, and to the pair in this order: the hash is one over
    theirs, so that it equals no model's. Names and settings are joined for people.
    """
    known = list(dict.fromkeys(models))
    if len(known) == 1:
        return known[0]
    parts = [model.to_json() if model is not None else None for model in models]

    def joined(field: str, absent: str) -> str:
        found = [absent if part is None else part[field] or absent for part in parts]
        return found[0] if len(set(found)) == 1 else " + ".join(found)

    hashes = ["" if model is None else model.hash for model in models]
    return ModelIdentity(
        hash=digest_of(json.dumps(hashes).encode()),
        name=joined("name", "activations without a model"),
        revision=None,
        dtype=joined("dtype", "unknown"),
        attention=joined("attention", "unknown"),
        tokenizer_hash=joined("tokenizer_hash", ""),
        adapter=None,
    )


def _numbered(number: int, name: str) -> str:
    return name if number == 1 else f"{number}:{name}"


def _require_aligned(first: Store, other: Store) -> None:
    """Refuse two stores of which equal rows are not about the same token."""
    differences = [what for what, same in _compared(first, other).items() if not same]
    if differences:
        raise UsageError(
            f"{first.path} and {other.path} are not token-aligned: they differ in {', '.join(differences)}; cache "
            "both with the same text, tokenizer, --tokens, --context, packing, masks and held-out share, and without "
            "--mask-norm-ratio, which leaves out other tokens in each model"
        )


def _compared(first: Store, other: Store) -> Mapping[str, bool]:
    same_file = {
        name: first.manifest.files.get(name, {}).get("blake2b")
        == other.manifest.files.get(name, {}).get("blake2b")
        for name in (layout.TOKENS, layout.ROWS, layout.KEEP)
    }
    return {
        "the tokenizer": not first.has_tokens or first.tokenizer_hash == other.tokenizer_hash,
        "the tokens": same_file[layout.TOKENS],
        "the rows of tokens": same_file[layout.ROWS],
        "which tokens are kept": same_file[layout.KEEP],
        "the documents or which of them are held out": all(
            np.array_equal(first.documents[name].to_numpy(), other.documents[name].to_numpy())
            for name in ("start", "split")
        ),
    }
