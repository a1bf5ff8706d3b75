"""What an imported SAE is measured on: a store or a text that is given, since its own training text is not known."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from saelab.activations.cache import cache_activations
from saelab.activations.spec import CacheConfig
from saelab.errors import UsageError
from saelab.evaluation.autoencoder import encode_tile, tiles
from saelab.evaluation.places import Places, read_rows
from saelab.evaluation.spec import EvaluationConfig
from saelab.lm.load import LanguageModel
from saelab.lm.spec import ModelSpec
from saelab.progress import Progress
from saelab.sae.autoencoder import SparseAutoencoder
from saelab.sae.feature_statistics import FeatureAccumulator, FeatureStatistics
from saelab.text.documents import Split
from saelab.text.spec import TextSpec
from saelab.training.imported import ImportedConfig

TRAINING_UNKNOWN = (
    "the SAE was imported, and what it was trained on is not known: it may have seen these tokens; the mean of mean "
    "ablation is that of the evaluated tokens"
)
_SPLITS: tuple[Split, ...] = ("train", "heldout")


def imported_harvest(
    path: Path,
    imported: ImportedConfig,
    places: Places,
    *,
    text: TextSpec | None,
    model: ModelSpec | None,
    tokens: int,
) -> CacheConfig:
    """Return what is cached for the time of an evaluation.

    Args:
        path: The run.
        imported: Where it came from.
        places: What it reads and reconstructs.
        text: The text that was asked for.
        model: The model that was asked for; the one that was named when the SAE was imported where not given.
        tokens: Tokens to evaluate at most.

    Raises:
        UsageError: There is no text, or no model.
    """
    if text is None:
        raise UsageError(
            f"{path} was imported and has no held-out documents of its own: give --text TEXT, or a store with --store"
        )
    if model is None and imported.model is None:
        raise UsageError(
            f"{path} was imported without a model: give --model with --allow-model-mismatch here, or import it again "
            "with --model, which records that it belongs to it"
        )
    spec = model or ModelSpec(
        name=imported.model or "", revision=imported.model_revision, adapter=imported.adapter
    )
    return _harvest(spec, replace(text, only_heldout=True), places, tokens, imported.context)


def measure_features(
    sae: SparseAutoencoder,
    lm: LanguageModel,
    text: TextSpec,
    *,
    tokens: int,
    context: int | None = None,
    progress: bool = True,
) -> FeatureStatistics:
    """Measure how often and how strongly each feature fires on a text, which a trained SAE knows of its training.

    Args:
        sae: The SAE.
        lm: Its model.
        text: All documents of it are read, as far as they are needed.
        tokens: Tokens at most.
        context: Tokens in a row; as in every store where not given.
        progress: Show progress on standard error.

    Raises:
        UsageError: The text is not there, or holds nothing.
        SaelabError: Memory or disk do not suffice, or an activation is not finite.
    """
    places, tile = Places.of_sae(sae.config), EvaluationConfig().tile
    accumulator = FeatureAccumulator(sae.config.d_sae)
    with tempfile.TemporaryDirectory(prefix="saelab-") as place:
        harvest = _harvest(lm.spec, text, places, tokens, context)
        with cache_activations(harvest, Path(place) / "store", progress=progress, lm=lm) as store:
            counts = [store.n_rows(places.inputs[0], split) for split in _SPLITS]
            with Progress("measuring features", sum(counts), "tokens", quiet=not progress) as bar:
                for split, n_rows in zip(_SPLITS, counts, strict=True):
                    for piece in tiles(n_rows, tile):
                        x = read_rows(store, places, split, piece.start, piece.stop).x
                        accumulator.add(encode_tile(sae, x.to(sae.W_enc.device), tile))
                        bar.advance(len(x))
    return accumulator.result()


def _harvest(
    model: ModelSpec, text: TextSpec, places: Places, tokens: int, context: int | None
) -> CacheConfig:
    harvest = CacheConfig(
        model=model,
        text=text,
        at=places.all,
        packing="conversation" if text.is_chat else "packed",
        tokens=tokens,
    )
    return harvest if context is None else replace(harvest, context=context)
