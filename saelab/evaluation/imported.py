"""What an imported SAE is evaluated on: a store or a text that is given, since its own training text is not known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from saelab.activations.spec import CacheConfig
from saelab.errors import UsageError
from saelab.evaluation.places import Places
from saelab.lm.spec import ModelSpec
from saelab.text.spec import TextSpec
from saelab.training.imported import ImportedConfig

TRAINING_UNKNOWN = (
    "the SAE was imported, and what it was trained on is not known: it may have seen these tokens; the mean of mean "
    "ablation is that of the evaluated tokens"
)


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
    harvest = CacheConfig(
        model=spec,
        text=replace(text, only_heldout=True),
        at=places.all,
        packing="conversation" if text.is_chat else "packed",
        tokens=tokens,
    )
    return harvest if imported.context is None else replace(harvest, context=imported.context)
