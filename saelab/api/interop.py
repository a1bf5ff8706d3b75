"""Other tools' SAEs in Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.errors import UsageError
from saelab.evaluation.imported import measure_features
from saelab.evaluation.run_list import open_run
from saelab.interop.answers import Answers
from saelab.interop.formats import detect, writer
from saelab.interop.importing import Measurement, import_run
from saelab.interop.locations import HUB, Location, locate
from saelab.interop.read import Found, load_foreign, read_foreign
from saelab.interop.writing import Exported, ExportRequest
from saelab.lm.load import LanguageModel, load_model
from saelab.lm.spec import ModelSpec
from saelab.quantities import parse_count
from saelab.sae.autoencoder import SparseAutoencoder
from saelab.sae.feature_statistics import FeatureStatistics
from saelab.sae.files import load_sae
from saelab.storage.manifest import MANIFEST_NAME, read_manifest
from saelab.text.spec import TextSpec
from saelab.training.group import GROUP
from saelab.training.run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping


def load(
    path: Path | str,
    *,
    format: str | None = None,
    allow_pickle: bool = False,
    **answers: Any,
) -> SparseAutoencoder:
    """Load an SAE: of a run, of an SAE folder, or of another tool.

    Args:
        path: A folder, a file, or ``hf://owner/name[@revision]/path``.
        format: Format of another tool's files; found from them where not given.
        allow_pickle: Whether `.pt` files may be read, as weights alone.
        answers: Fields of `saelab.interop.answers.Answers`, for what other tools' files do not say.

    Raises:
        UsageError: There is nothing of the kind, or something that decides what the SAE computes is said nowhere.
        DamagedFileError: The files are not sound.
    """
    location = None if format is None and _is_ours(path) else _foreign(path, format)
    if location is not None:
        found = read_foreign(location, format=format, answers=_answers(answers), allow_pickle=allow_pickle)
        return load_foreign(found)
    path = Path(path)
    if path.is_dir() and (path / MANIFEST_NAME).exists() and read_manifest(path).kind == "sae":
        return load_sae(path)
    return open_run(path).sae()


def import_sae(
    path: Path | str,
    *,
    out: Path | str,
    model: str | ModelSpec | None = None,
    lm: LanguageModel | None = None,
    text: str | TextSpec | None = None,
    tokens: int | str = "200k",
    format: str | None = None,
    allow_pickle: bool = False,
    quiet: bool = False,
    **answers: Any,
) -> Run:
    """Make a run of another tool's SAE.

    Args:
        path: A folder, a file, or ``hf://owner/name[@revision]/path``.
        out: Folder of the run.
        model: The model that it belongs to: its hash is recorded, and its hookpoints spell the SAE's places.
        lm: The same, if it is loaded already.
        text: Measure on this text how often and how strongly each feature fires; needs the model.
        tokens: Tokens of it at most.
        format: Format of the files; found from them where not given.
        allow_pickle: Whether `.pt` files may be read, as weights alone.
        quiet: Show no progress.
        answers: Fields of `saelab.interop.answers.Answers`, for what the files do not say.

    Raises:
        UsageError: Something is not said anywhere, the model does not fit, or the folder holds something else.
        DamagedFileError: The files are not sound.
    """
    found = read_foreign(path, format=format, answers=_answers(answers), allow_pickle=allow_pickle)
    if lm is None and model is not None:
        lm = load_model(ModelSpec(name=model) if isinstance(model, str) else model)
    text = TextSpec(source=text) if isinstance(text, str) else text
    return import_run(found, Path(out), lm, measurement(found, lm, text, parse_count(tokens), quiet)).run


def measurement(
    found: Found, lm: LanguageModel | None, text: TextSpec | None, tokens: int, quiet: bool = False
) -> Measurement | None:
    """Return how the features of an imported SAE are measured; None where no text was named.

    Raises:
        UsageError: There is a text and no model.
    """
    if text is None:
        return None
    if lm is None:
        raise UsageError("features are measured on a text by their model: name it with --model")
    context = found.foreign.place.context

    def measure(sae: SparseAutoencoder) -> FeatureStatistics:
        return measure_features(
            sae.to(lm.device), lm, text, tokens=tokens, context=context, progress=not quiet
        )

    return Measurement(text=text.resolved().source, tokens=tokens, measure=measure)


def export(run: Run | Path | str, *, to: str, out: Path | str, index: str = "main") -> Exported:
    """Write a run's SAE in another tool's format.

    Args:
        run: A finished run.
        to: The format, one of `saelab.interop.formats.WRITERS`.
        out: A new folder.
        index: Name of the feature index, for formats that are made of one.

    Raises:
        UsageError: The format is unknown or has no such SAE, or the folder holds something.
    """
    run = run if isinstance(run, Run) else open_run(run)
    return writer(to).write(ExportRequest(run=run, out=Path(out), index=index))


def _is_ours(path: Path | str) -> bool:
    return not str(path).startswith(HUB) and any(
        (Path(path) / name).exists() for name in (MANIFEST_NAME, GROUP)
    )


def _foreign(path: Path | str, format: str | None) -> Location | None:
    """Return the place of another tool's files; None where there is nothing of any tool."""
    if not str(path).startswith(HUB) and not Path(path).expanduser().exists():
        return None
    location = locate(path)
    return location if format is not None or detect(location) is not None else None


def _answers(given: Mapping[str, Any]) -> Answers:
    if unknown := sorted(given.keys() - Answers.__dataclass_fields__.keys()):
        raise UsageError(
            f"there is no answer {', '.join(unknown)}; there are {', '.join(Answers.__dataclass_fields__)}"
        )
    return Answers(**given)
