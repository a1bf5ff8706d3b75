"""Index finished runs: which tokens, which model, what is there already, and what has to be built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from saelab.activations.harvest import Harvester
from saelab.activations.packed import pack_rows, require_context
from saelab.activations.request import ReadText
from saelab.activations.spec import CacheConfig, HarvestConfig
from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.evaluation.autoencoder import require_fit
from saelab.evaluation.places import Places
from saelab.evaluation.records import check_record_name
from saelab.evaluation.sources import Shared, how_it_was_harvested, packing_of, store_of
from saelab.features.building.builder import Ingredients, build
from saelab.features.building.corpus import Corpus, LiveCorpus, StoreCorpus
from saelab.features.building.facts import Origin, describe_index
from saelab.features.building.folder import IndexFolder
from saelab.features.building.logits import find_lens
from saelab.features.building.request import is_finished, take_over
from saelab.features.schema import INDEXES
from saelab.features.spec import DEFAULT_PARTS, PARTS, IndexConfig, Part, index_config_from_json
from saelab.features.streaming.builder import require_streamable
from saelab.interrupts import StopRequest
from saelab.lm.hooks import resolve_all
from saelab.lm.load import LanguageModel
from saelab.sae.files import load_sae_config, sae_identity
from saelab.sae.model_match import require_same_model
from saelab.storage.lock import locked
from saelab.storage.manifest import MANIFEST_NAME, read_manifest
from saelab.text.load import iter_documents
from saelab.text.spec import TextSpec
from saelab.text.vocabulary import Vocabulary
from saelab.training.run import SAE, Run

TEXT_TOKENS = 1_000_000
"""Tokens of a text that are indexed where no number is given; of a store all."""


@dataclass(frozen=True, kw_only=True)
class IndexSource:
    """Which tokens are indexed; with nothing given, those of the run's own store, or of its own text."""

    store: Store | None = None
    """All documents of this store."""
    text: TextSpec | None = None
    """This text, through the run's own model."""

    def __post_init__(self) -> None:
        if self.store is not None and self.text is not None:
            raise UsageError("give --store or --text, not both: a store has a text")


@dataclass(frozen=True, kw_only=True)
class HowToIndex:
    """What indexing is told beside the runs and the tokens."""

    config: IndexConfig = field(default_factory=IndexConfig)
    """What is kept of every feature."""
    parts: tuple[Part, ...] = DEFAULT_PARTS
    """Further tables."""
    name: str = "main"
    """Name of the index within the run."""
    keep_codes: bool | None = None
    """Keep every (token, feature) pair; None keeps them where they take no more than 10 GB."""
    out: Path | None = None
    """An overlay folder, for runs that are read-only; None keeps the index in its run."""
    device: str = "auto"
    """Where models are loaded."""
    quiet: bool = False
    """Show no progress."""


def index_place(run: Run, name: str, out: Path | None = None) -> Path:
    """Return the folder of an index: in its run, or in the overlay ``out``."""
    base = run.path if out is None else out / sae_identity(run.path / SAE)
    return base / INDEXES / name


def index_runs(
    runs: Sequence[Run],
    source: IndexSource | None = None,
    how: HowToIndex | None = None,
    *,
    lm: LanguageModel | None = None,
    stop: StopRequest | None = None,
) -> list[Path]:
    """Build the indexes of finished runs, one after the other, or go on with them; finished ones are left alone.

    Args:
        runs: Finished runs.
        source: Which tokens.
        how: What is kept and where.
        lm: Their model, if it is loaded already.
        stop: When asked to stop, the same call goes on later.

    Returns:
        The folder of each index.

    Raises:
        UsageError: Run and tokens do not belong together, or an index of that name was made otherwise.
        Interrupted: A stop was asked for.
    """
    source, how, stop = source or IndexSource(), how or HowToIndex(), stop or StopRequest()
    how.config.check()
    check_record_name(how.name)
    with Shared(lm, how.device) as shared:
        return [_index(run, source, how, shared, stop) for run in runs]


def add_parts(
    run: Run,
    parts: Sequence[Part],
    source: IndexSource | None = None,
    how: HowToIndex | None = None,
    *,
    lm: LanguageModel | None = None,
    stop: StopRequest | None = None,
) -> Path:
    """Add tables to an index that is there; its configuration and its other tables stay as they are.

    Args:
        run: The run.
        parts: What is added.
        source: The tokens of the index, where they are not the run's own.
        how: Which index; its ``config`` and ``parts`` are not used.
        lm: The model, if it is loaded already.
        stop: When asked to stop, the same call goes on later.

    Raises:
        UsageError: There is no such index, or the tokens are others.
    """
    how = how or HowToIndex()
    check_record_name(how.name)
    place = index_place(run, how.name, how.out)
    if not (place / MANIFEST_NAME).exists():
        raise UsageError(f"index: there is no index {place}; build it first: saelab index {run.path}")
    content = read_manifest(place, "index").content
    config = index_config_from_json(content.get("config"), str(place))
    wanted = tuple(part for part in PARTS if part in parts or part in content.get("parts", ()))
    whole = replace(how, config=config, parts=wanted)
    return index_runs([run], source, whole, lm=lm, stop=stop)[0]


def _index(run: Run, source: IndexSource, how: HowToIndex, shared: Shared, stop: StopRequest) -> Path:
    if run.aligned_paths:
        raise UsageError(f"{run.path} reads several models at once; an index shows one model's text")
    if how.config.mode == "streaming":
        require_streamable(how.parts, how.keep_codes)
    folder = IndexFolder(index_place(run, how.name, how.out))
    harvest = _harvest(run, source, how, shared)
    request = _request(run, source, how, harvest, shared)
    with locked(folder.place.parent, "index"):
        folder.recover()
        if is_finished(folder, request, () if harvest else _given_store(run, source, shared).extended_from):
            return folder.place
        folder.begin(request)
        made_of = _ingredients(run, source, how, harvest, shared)
        take_over(folder, made_of.corpus, request)
        build(made_of, folder, stop, quiet=how.quiet)
    return folder.place


def _harvest(run: Run, source: IndexSource, how: HowToIndex, shared: Shared) -> CacheConfig | None:
    """Return what has to be read from the model first; None where a store has it."""
    if source.store is not None or (source.text is None and run.store_path is not None):
        return None
    own = how_it_was_harvested(run, shared, source.text)
    text = source.text or own.text
    same = {one.name: getattr(own, one.name) for one in fields(HarvestConfig)}
    asked = {
        "text": text,
        "packing": packing_of(text, own.packing),
        "at": Places.of_sae(load_sae_config(run.path / SAE)).inputs,
        "loss": False,
        "gradients": False,
    }
    return CacheConfig(**(same | asked), tokens=how.config.tokens or TEXT_TOKENS).resolved()


def _given_store(run: Run, source: IndexSource, shared: Shared) -> Store:
    return source.store or store_of(run, shared)


def _request(
    run: Run, source: IndexSource, how: HowToIndex, harvest: CacheConfig | None, shared: Shared
) -> dict[str, Any]:
    """Return what decides an index, as JSON: equal requests give equal data files."""
    if harvest is None:
        store = _given_store(run, source, shared)
        corpus: dict[str, Any] = {"store_identity": store.identity}
    else:
        corpus = {"harvest": {k: v for k, v in asdict(harvest).items() if k != "tokens"}}
        corpus["harvest"]["model"].pop("device")
        corpus["harvest"]["at"] = list(harvest.at)
        corpus["harvest"]["text"]["keep_columns"] = list(harvest.text.keep_columns)
    return {
        "sae_identity": sae_identity(run.path / SAE),
        "config": how.config.to_json(),
        "corpus": corpus,
        "parts": sorted(how.parts),
    }


def _ingredients(
    run: Run, source: IndexSource, how: HowToIndex, harvest: CacheConfig | None, shared: Shared
) -> Ingredients:
    sae = run.sae()
    places = Places.of_sae(sae.config)
    if harvest is None:
        store = _given_store(run, source, shared)
        require_fit(sae, store)
        corpus: Corpus = StoreCorpus(store, places, how.config.tokens)
        lm = _model_of(store, shared)
        origin = Origin(
            store.provenance, store.notes, store.identity, store.model_identity, store.model_spec()
        )
    else:
        lm = shared.model(harvest.model)
        require_same_model(
            sae.config,
            lm.identity,
            {hookpoint.module_path: hookpoint.d_in for hookpoint in lm.hookpoints},
            doing="index",
        )
        corpus, origin = _live_corpus(harvest, lm, places)
    lens = find_lens(lm, sae.config)
    return Ingredients(
        sae=sae.to(lm.device),
        corpus=corpus,
        config=how.config,
        parts=how.parts,
        lens=lens,
        vocabulary=Vocabulary.of_tokenizer(lm.tokenizer, size=_logits_of(lm)),
        keep_codes=how.keep_codes,
        facts=describe_index(run, corpus, how.config, origin, lens),
    )


def _logits_of(lm: LanguageModel) -> int | None:
    """Return the number of logits, which may be more than the tokenizer has tokens."""
    return None if lm.unembedding is None else lm.unembedding.weight.shape[0]


def _model_of(store: Store, shared: Shared) -> LanguageModel:
    spec = store.model_spec()
    if spec is None:
        raise UsageError(
            f"index: {store.path} does not say which model made it, so its tokens cannot be shown"
        )
    lm = shared.model(spec)
    if store.model_identity is not None and lm.identity.hash != store.model_identity.hash:
        raise UsageError(
            f"index: the model {lm.identity.name} is not the one that made the activations of {store.path}; "
            "give the model that did, or index a text with --text"
        )
    return lm


def _live_corpus(harvest: CacheConfig, lm: LanguageModel, places: Places) -> tuple[Corpus, Origin]:
    """Pack a text for the model that reads it while the index is built."""
    require_context(harvest, lm)
    text = ReadText(iter_documents(harvest.text))
    sequences = pack_rows(harvest, lm, text, harvest.tokens, cut=True)
    text.end()
    hookpoints = resolve_all(places.inputs, lm.hookpoints)
    corpus = LiveCorpus(Harvester(lm, hookpoints, sequences, harvest), places)
    provenance = {
        "made_from": "text",
        "text": asdict(harvest.text) | text.to_json(),
        "packing": harvest.packing,
        "context": harvest.context,
        "chat_template": sequences.chat_template,
        "mask_bos": harvest.mask_bos,
        "mask_first_positions": harvest.mask_first_positions,
    }
    return corpus, Origin(provenance, sequences.notes, None, lm.identity, lm.spec)
