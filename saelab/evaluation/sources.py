"""Where the tokens of an evaluation come from: the run's own store, a store that is given, or a text through a model.

A run that was trained live has no store: the held-out documents of its own text go through its own
model, packed and masked as they were. The same happens with another text, or another model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from saelab.activations.cache import cache_activations
from saelab.activations.request import saved_config
from saelab.activations.spec import CacheConfig, HarvestConfig
from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.lm.load import LanguageModel, load_model
from saelab.lm.spec import ModelSpec
from saelab.text.documents import HELDOUT_SHARE
from saelab.text.packing import Packing
from saelab.text.spec import TextSpec
from saelab.training.run import Run


@dataclass(frozen=True, kw_only=True)
class TokenSource:
    """What was asked for; with nothing given, the held-out documents that each run was not trained on."""

    store: Store | None = None
    """The held-out documents of this store, whatever the run was trained on."""
    text: TextSpec | None = None
    """This text, through each run's own model or the one that is given; never what a run was trained on."""
    model: ModelSpec | None = None
    """This model, reading each run's own text or the one that is given."""

    def __post_init__(self) -> None:
        if self.store is not None and (self.text is not None or self.model is not None):
            other = "--text" if self.model is None else "--model"
            raise UsageError(f"give --store or {other}, not both: a store has a text and a model")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What one run is evaluated on; runs of which this is equal are evaluated together."""

    hook: str
    """Module path of the hookpoint."""
    store: Path | None = None
    """A store that is there,"""
    harvest: CacheConfig | None = None
    """or what is cached for the time of the evaluation."""
    mean_of: str | None = None
    """The source whose training tokens give the mean of mean ablation; None for the store's own."""


class Shared:
    """Stores and models, opened once for all runs that need them; one model is in memory at a time.

    Args:
        lm: A model that is loaded already: taken for whatever is asked for (who uses it compares identities).
        device: Where models are loaded; ``auto`` leaves it to what each was recorded with.
    """

    def __init__(self, lm: LanguageModel | None = None, device: str = "auto") -> None:
        self._given, self._device = lm, device
        self._stores: dict[Path, Store] = {}
        self._loaded: tuple[ModelSpec, LanguageModel] | None = None

    def store(self, path: Path) -> Store:
        """Open a store, once."""
        if path not in self._stores:
            self._stores[path] = Store.open(path)
        return self._stores[path]

    def model(self, spec: ModelSpec) -> LanguageModel:
        """Load a model, unless it was the last one that was asked for."""
        if self._given is not None:
            return self._given
        if self._device != "auto":
            spec = replace(spec, device=self._device)
        if self._loaded is None or self._loaded[0] != spec:
            self._loaded = None  # its memory is free before the next one is loaded
            self._loaded = (spec, load_model(spec))
        return self._loaded[1]

    def __enter__(self) -> Shared:
        return self

    def __exit__(self, *_: object) -> None:
        for store in self._stores.values():
            store.close()


def tokens_for(run: Run, source: TokenSource, n_tokens: int, shared: Shared) -> Tokens:
    """Say what a run is evaluated on, without reading any of it.

    Raises:
        UsageError: The run's own store is needed and not there, or is activations without a text.
    """
    hook = run.config.hook
    if source.store is not None:
        return Tokens(hook=hook, store=source.store.path)
    if run.store_path is not None and source.text is None and source.model is None:
        return Tokens(hook=hook, store=store_of(run, shared).path)
    own = run.live or _how_its_store_was_made(run, shared)
    text = _unseen(source.text or own.text, own.text)
    asked = {
        "model": source.model or own.model,
        "text": text,
        "packing": _packing(text, own.packing),
        "at": (hook,),
        "loss": False,
        "gradients": False,
    }
    same = {field.name: getattr(own, field.name) for field in fields(HarvestConfig)}
    harvest = CacheConfig(**(same | asked), tokens=n_tokens)
    return Tokens(hook=hook, harvest=harvest, mean_of=run.config.source_identity)


@contextmanager
def open_tokens(
    tokens: Tokens, shared: Shared, lm: LanguageModel | None, quiet: bool = False
) -> Iterator[Store]:
    """Open the store of the tokens, or cache them for the time of the block."""
    if tokens.harvest is None:
        assert tokens.store is not None
        yield shared.store(tokens.store)
        return
    with (
        tempfile.TemporaryDirectory(prefix="saelab-") as folder,
        cache_activations(tokens.harvest, Path(folder) / "store", progress=not quiet, lm=lm) as store,
    ):
        yield store


def store_of(run: Run, shared: Shared) -> Store:
    """Open the store that a run was trained on.

    Raises:
        UsageError: It was trained live, or its store is not where it was, or is not the same any more.
    """
    if run.store_path is None:
        raise UsageError(f"{run.path} was trained live, without a store; give one with --store")
    if not run.store_path.exists():
        raise UsageError(f"the store of {run.path} is not at {run.store_path} any more; give it with --store")
    store = shared.store(run.store_path)
    if run.config.source_identity in store.extended_from:
        raise UsageError(
            f"{run.store_path} was extended since {run.path} was trained on it; evaluate on what it holds now "
            "with --store"
        )
    if store.identity != run.config.source_identity:
        raise UsageError(
            f"{run.store_path} is not the store that {run.path} was trained on; give one with --store"
        )
    return store


def text_to_evaluate(source: str) -> TextSpec:
    """Return a text by its name: held-out documents of ``stdlib``, which the embedded model has read, all of others."""
    return TextSpec(source=source, heldout_share=default_share(source))


def default_share(source: str) -> float:
    """Return the share of a text's documents that is evaluated where none is asked for."""
    return HELDOUT_SHARE if source.startswith("stdlib") else 1.0


def _unseen(text: TextSpec, own: TextSpec) -> TextSpec:
    """Return the documents to evaluate; of the run's own text those that it was not trained on."""
    share = min(text.heldout_share, own.heldout_share) if text.source == own.source else text.heldout_share
    return replace(text, heldout_share=share, only_heldout=True)


def _packing(text: TextSpec, own: Packing) -> Packing:
    """Return how a text is packed: as the run's own was, but conversations as such, and only those."""
    if text.is_chat:
        return "conversation"
    return "document" if own == "conversation" else own


def _how_its_store_was_made(run: Run, shared: Shared) -> HarvestConfig:
    store = store_of(run, shared)
    if not store.has_tokens:
        raise UsageError(f"{store.path} holds activations without a model: a text cannot be evaluated")
    return saved_config(store.path)
