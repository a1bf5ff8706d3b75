"""Where the tokens of an evaluation come from: the run's own store, a store that is given, or a text through a model.

A run that was trained live has no store: the held-out documents of its own text go through its own
model, packed and masked as they were. The same happens with another text, or another model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from saelab.activations.cache import cache_activations
from saelab.activations.live import live_identity
from saelab.activations.request import documents_read, read_again, require_same_text, saved_config
from saelab.activations.spec import CacheConfig, HarvestConfig
from saelab.activations.store import Store
from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.evaluation.imported import TRAINING_UNKNOWN, imported_harvest
from saelab.evaluation.origin import Origin
from saelab.evaluation.places import Places
from saelab.evaluation.seen import TrainingText, Unseen, is_local, is_same_text, only_unseen
from saelab.lm.load import LanguageModel, load_model
from saelab.lm.spec import ModelSpec
from saelab.sae.files import load_sae_config
from saelab.storage.manifest import read_manifest
from saelab.text.documents import HELDOUT_SHARE
from saelab.text.packing import NoTokensError, Packing
from saelab.text.spec import TextSpec
from saelab.training.imported import ImportedConfig
from saelab.training.run import SAE, Run


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

    places: Places
    """The hookpoints that are read and those that are reconstructed."""
    store: Path | None = None
    """A store that is there,"""
    harvest: CacheConfig | None = None
    """or what is cached for the time of the evaluation."""
    training: TrainingText | None = None
    """What is left out of it, because the runs were trained on it; None where that is not known (imported SAEs)."""
    mean_of: str | None = None
    """The source whose training tokens give the mean of mean ablation; None for those of a store that is there, or,
    of what is cached, all."""
    origin: Origin
    """The same for the record."""

    @property
    def hook(self) -> str:
        """Module path of the first hookpoint that is read; tokens are the same at all of them."""
        return self.places.inputs[0]


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
    """Say what a run is evaluated on, without reading more of it than tells whether it is still the same.

    Raises:
        UsageError: The run's own store or text is needed and is not there or has changed, the store is
            activations without a text, or the run was trained on stores of several models.
    """
    if run.imported is not None:
        return _tokens_for_imported(run, run.imported, source, n_tokens)
    places = Places.of_run(run.config)
    if source.store is not None:
        return _tokens_of_store(run, source.store, places)
    if run.aligned_paths:
        stores = ", ".join(map(str, (run.store_path, *run.aligned_paths)))
        raise UsageError(
            f"{run.path} reads several models at once, from {stores}; such a run cannot be evaluated: a store, a "
            "model or a text is of one model"
        )
    if run.store_path is not None and source.text is None and source.model is None:
        return _tokens_of_store(run, store_of(run, shared), places)
    own = how_it_was_harvested(run, shared)
    training = _training_text(run, own, source.text, shared)
    text = only_unseen(source.text or own.text, own.text)
    model, packing = source.model or own.model, packing_of(text, own.packing)
    asked = {
        "model": model,
        "text": text,
        "packing": packing,
        "at": places.all,
        "loss": False,
        "gradients": False,
    }
    same = {field.name: getattr(own, field.name) for field in fields(HarvestConfig)}
    kind = "text" if source.text is not None else "own" if source.model is None else "model"
    return Tokens(
        places=places,
        harvest=CacheConfig(**(same | asked), tokens=n_tokens),
        training=training,
        mean_of=run.config.source_identity,
        origin=Origin(kind=kind, text=text, model=model, packing=packing),
    )


def _tokens_for_imported(run: Run, imported: ImportedConfig, source: TokenSource, n_tokens: int) -> Tokens:
    places = Places.of_sae(load_sae_config(run.path / SAE))
    if source.store is not None:
        return _tokens_of_store(run, source.store, places)
    harvest = imported_harvest(
        run.path, imported, places, text=source.text, model=source.model, tokens=n_tokens
    )
    origin = Origin(kind="text", text=harvest.text, model=harvest.model, packing=harvest.packing)
    return Tokens(places=places, harvest=harvest, origin=origin)


@contextmanager
def open_tokens(
    tokens: Tokens, shared: Shared, lm: LanguageModel | None, quiet: bool = False
) -> Iterator[tuple[Store, tuple[str, ...]]]:
    """Open the store of the tokens, or cache them for the time of the block; with what makes them doubtful.

    Raises:
        UsageError: There is no document to evaluate.
    """
    if tokens.harvest is None:
        assert tokens.store is not None
        yield shared.store(tokens.store), ()
        return
    text, training = tokens.harvest.text, tokens.training
    documents = None if training is None else Unseen(text, training)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="saelab-"))) / "store"
        try:
            store = cache_activations(tokens.harvest, folder, progress=not quiet, lm=lm, documents=documents)
        except NoTokensError as error:
            raise UsageError(_why_nothing_is_left(text, documents)) from error
        yield stack.enter_context(store), (TRAINING_UNKNOWN,) if documents is None else documents.warnings()


def store_of(run: Run, shared: Shared) -> Store:
    """Open the store that a run was trained on.

    Raises:
        UsageError: It was trained live, or its store is not where it was, or is not the same any more.
    """
    if run.imported is not None:
        raise UsageError(f"{run.path} was imported and has no store of its own; give one with --store")
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


def _tokens_of_store(run: Run, store: Store, places: Places) -> Tokens:
    is_own = run.trained is not None and store.identity == run.trained.source_identity
    kind = "own" if is_own else "store"
    origin = Origin(kind=kind, store=str(store.path), store_identity=store.identity)
    return Tokens(places=places, store=store.path, origin=origin)


def _training_text(run: Run, own: HarvestConfig, asked: TextSpec | None, shared: Shared) -> TrainingText:
    """Return what a run was trained on, and whether it is still there as it was.

    A data set of the hub is not opened for this, unless it is evaluated anyway.

    Raises:
        UsageError: It is to be evaluated itself, and is not the same any more.
    """
    is_read = asked is None or is_same_text(asked, own.text)
    has_changed = (is_read or is_local(own.text)) and _has_changed(run, own, must_be_there=is_read)
    if has_changed and asked is None:
        raise UsageError(
            f"{own.text.source} is not the text that {run.path} was trained on any more; "
            "evaluate on what it holds now with --text"
        )
    n_documents = None if run.store_path is None else documents_read(store_of(run, shared).path)
    return TrainingText(text=own.text, n_documents=n_documents, has_changed=has_changed)


def _has_changed(run: Run, own: HarvestConfig, *, must_be_there: bool) -> bool:
    try:
        if run.live is not None:
            model = read_manifest(run.path, "run").content.get("model")
            if not isinstance(model, dict):
                raise DamagedFileError(f"{run.path}: its manifest does not name a model")
            return live_identity(run.live, model) != run.config.source_identity
        assert run.store_path is not None
        if not is_local(own.text):
            return False  # reading it twice would take as long as the evaluation
        again = read_again(own.text, run.store_path)
    except (SaelabError, OSError):
        if must_be_there:
            raise
        return False  # nothing can be compared, of which the record warns
    try:
        require_same_text(run.store_path, again)
    except UsageError:
        return True
    return False


def _why_nothing_is_left(text: TextSpec, documents: Unseen | None) -> str:
    if documents is not None and documents.left_out:
        return (
            f"every document that there is of {text.source} was trained on ({documents.left_out:,} of them); "
            "give another text with --text"
        )
    return (
        f"{text.source} has no held-out document with tokens (held-out share {text.heldout_share:g}); "
        "give another text with --text, or a larger share with --heldout-share"
        if text.heldout_share < 1
        else f"{text.source} has no document with tokens; give another text with --text"
    )


def packing_of(text: TextSpec, own: Packing) -> Packing:
    """Return how a text is packed: as the run's own was, but conversations as such, and only those."""
    if text.is_chat:
        return "conversation"
    return "document" if own == "conversation" else own


def how_it_was_harvested(run: Run, shared: Shared, text: TextSpec | None = None) -> HarvestConfig:
    """Return the model, text and packing that a run was trained on.

    Args:
        run: The run.
        shared: Opens its store.
        text: What an imported run is to read, since its own text is not known.

    Raises:
        UsageError: Its store is not there as it was, or holds activations without a model; or it was imported
            without a model, or no text is given for it.
    """
    if run.imported is not None:
        places = Places.of_sae(load_sae_config(run.path / SAE))
        return imported_harvest(run.path, run.imported, places, text=text, model=None, tokens=1)
    if run.live is not None:
        return run.live
    store = store_of(run, shared)
    if not store.has_tokens:
        raise UsageError(f"{store.path} holds activations without a model: a text cannot be evaluated")
    return saved_config(store.path)
