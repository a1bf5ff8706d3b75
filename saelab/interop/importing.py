"""Import a foreign SAE: an ordinary run folder, with where it came from instead of how it was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from saelab.errors import UsageError
from saelab.interop.adopt import Belonging, adopt
from saelab.interop.hooks import find_hookpoint, spelled_without_model
from saelab.interop.read import UNKNOWN, Found
from saelab.lm.hooks import Hookpoint
from saelab.lm.load import LanguageModel
from saelab.sae.autoencoder import SparseAutoencoder
from saelab.sae.feature_statistics import FeatureStatistics
from saelab.sae.files import save_sae
from saelab.storage.files import read_json, remove_leftovers, require_free_space, write_json
from saelab.storage.lock import LOCK_NAME, locked
from saelab.storage.manifest import MANIFEST_NAME, read_manifest, write_manifest
from saelab.training.imported import IMPORTED, ImportedConfig
from saelab.training.run import CONFIG, SAE, Run


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How the statistics of features are measured when an SAE is imported."""

    text: str
    """Name of the text, for the record."""
    tokens: int
    """Tokens of it at most."""
    measure: Callable[[SparseAutoencoder], FeatureStatistics]
    """Measures them."""


@dataclass(frozen=True)
class Imported:
    """What an import made."""

    run: Run
    sae: SparseAutoencoder
    notes: tuple[str, ...]
    """What whoever uses the SAE should know, one sentence each."""


def import_run(
    found: Found, out: Path, lm: LanguageModel | None = None, measurement: Measurement | None = None
) -> Imported:
    """Write a foreign SAE as a run; the same call on a finished or interrupted import completes it.

    Feature statistics are part of the run only where they are measured; nothing stands in for them.

    Args:
        found: What was read.
        out: The run's folder.
        lm: The model that it belongs to: its hookpoints spell the SAE's places, and its hash is recorded.
        measurement: How statistics of its features are measured; they are left out where not given.

    Raises:
        UsageError: It is not known which place the SAE reads, the model has no such place or one of another
            width, or the folder holds something else.
        SaelabError: The disk is full, or the folder cannot be written.
    """
    belonging, notes = _belonging(found, lm)
    sae = adopt(found.foreign, belonging)
    if lm is not None:
        _require_width(sae, lm, found)
    config = _config(found, sae, lm, measurement, notes)
    with locked(out, "import"):
        if not _is_there(out, config):
            remove_leftovers(out, "*", f"{SAE}/*")
            size = sum(parameter.numel() * 4 for parameter in sae.parameters())
            require_free_space(out, size + 2**20, "the SAE", "free some space")
            write_json(out / CONFIG, config.to_json())
            statistics = None if measurement is None else measurement.measure(sae)
            save_sae(out / SAE, sae.cpu(), statistics, replace=True)
            names = [*read_manifest(out / SAE).files, MANIFEST_NAME]
            content = {
                IMPORTED: {"format": config.format, "source": config.source, "revision": config.revision}
            }
            write_manifest(out, "run", [CONFIG, *(f"{SAE}/{name}" for name in names)], content)
    return Imported(Run.open(out), sae, config.notes)


def _belonging(found: Found, lm: LanguageModel | None) -> tuple[Belonging, tuple[str, ...]]:
    """Return the places and the model in our spelling, and what is doubtful about them."""
    place, hook, target = found.foreign.place, found.hook, found.target_hook
    if hook is None:
        raise UsageError(
            f"{found.location}: its files do not say which activations it reads; say it with --at HOOK"
        )
    if found.foreign.is_transcoder and target is None:
        raise UsageError(
            f"{found.location}: it is a transcoder, and its files do not say what it reconstructs; "
            "say it with --target-at HOOK"
        )
    if lm is None:
        path, alias = spelled_without_model(hook, place.model)
        target = None if target is None else spelled_without_model(target, place.model)[0]
        note = (
            "no model was named: its hash is not known, and hookpoints are spelled as far as names alone tell; "
            "import it with --model to use it on a model without --allow-model-mismatch"
        )
        return Belonging(hook=path, alias=alias, target_hook=target, model_name=place.model or UNKNOWN), (
            note,
        )
    point = find_hookpoint(hook, lm.hookpoints)
    target_point = None if target is None else find_hookpoint(target, lm.hookpoints)
    belonging = Belonging(
        hook=point.module_path,
        alias=point.alias or "",
        target_hook=None if target_point is None else target_point.module_path,
        model_name=lm.identity.name,
        model_identity=lm.identity.hash,
        tokenizer_hash=lm.identity.tokenizer_hash,
    )
    said = place.model or "none"
    note = f"that it belongs to {lm.identity.name} was said by whoever imported it; its files name {said}"
    return belonging, (note,)


def _require_width(sae: SparseAutoencoder, lm: LanguageModel, found: Found) -> None:
    widths = {point.module_path: point for point in lm.hookpoints}
    config = sae.config
    for hook, width in ((config.input_hooks[0], config.d_in), (config.output_hooks[0], config.d_out)):
        point: Hookpoint = widths[hook]
        if point.d_in != width:
            raise UsageError(
                f"{found.location}: the SAE has width {width} at {hook}, where {lm.identity.name} has {point.d_in}; "
                "name its own model with --model, or another place with --at"
            )


def _config(
    found: Found,
    sae: SparseAutoencoder,
    lm: LanguageModel | None,
    measurement: Measurement | None,
    notes: tuple[str, ...],
) -> ImportedConfig:
    place, spec = found.foreign.place, None if lm is None else lm.spec.resolved()
    return ImportedConfig(
        format=found.format,
        architecture=found.foreign.architecture,
        source=found.location.address,
        revision=found.location.revision,
        files=found.location.digests(),
        width=sae.config.d_sae,
        hook=sae.config.input_hooks[0],
        hook_given=place.hook,
        model_given=place.model,
        model=None if spec is None else spec.name,
        model_revision=None if spec is None else spec.revision,
        adapter=None if spec is None else spec.adapter,
        context=place.context,
        measured_on=None if measurement is None else measurement.text,
        measured_tokens=None if measurement is None else measurement.tokens,
        told=found.answers.given(),
        notes=(*found.foreign.notes, *notes),
    )


def _is_there(out: Path, config: ImportedConfig) -> bool:
    """Whether the same import is finished in a folder.

    Raises:
        UsageError: It holds something else.
    """
    there = {path.name for path in out.iterdir()} - {LOCK_NAME}
    if not there:
        return False
    if (out / CONFIG).exists() and read_json(out / CONFIG) == _as_read(config):
        return (out / MANIFEST_NAME).exists()
    leftovers = all(name.startswith(CONFIG) for name in there) and not (out / CONFIG).exists()
    if leftovers:  # killed while the first file was written
        return False
    raise UsageError(f"{out} holds something else ({', '.join(sorted(there)[:3])}); choose a new folder")


def _as_read(config: ImportedConfig) -> object:
    import json

    return json.loads(json.dumps(config.to_json()))
