"""Feature cards and the report of a run in Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.errors import UsageError
from saelab.evaluation.comparison.rows import read_metrics
from saelab.evaluation.records import evaluations_folder
from saelab.evaluation.run_list import open_run
from saelab.features.schema import INDEXES
from saelab.sae.files import load_sae_config, sae_identity
from saelab.storage.files import read_json
from saelab.storage.manifest import MANIFEST_NAME, check_file, read_manifest
from saelab.training.run import SAE, Run

if TYPE_CHECKING:
    from saelab.features.index import FeatureIndex
    from saelab.sae.config import SAEConfig
    from saelab.viz.document import HtmlDoc
    from saelab.viz.report import IndexOnReport

FEATURES = 12
"""Cards of a report."""
MAX_FEATURES = 200
"""More cards make a page that browsers are slow to open."""


def show(index: FeatureIndex | Run | Path | str, feature: int, **options: Any) -> HtmlDoc:
    """Return the card of a feature: a notebook shows it, ``.save(path)`` writes it.

    Args:
        index: An index, or the run (or the folder of either) that it is of.
        feature: Index of the feature.
        options: Of `saelab.viz.card.html_feature_card`: ``scale``, ``breaks``, ``most``, ``theme``.

    Raises:
        UsageError: There is no such feature, or no index.
        DamagedFileError: The index is not sound.
    """
    from saelab.viz.card import html_feature_card

    opened = _opened(index)
    view = opened.feature(feature)
    return html_feature_card(view, opened.vocabulary, parts=_parts(opened), **options)


def report(
    run: Run | Path | str,
    *,
    out: Path | str,
    index: str | None = None,
    features: int = FEATURES,
    overlay: Path | str | None = None,
    force: bool = False,
) -> Path:
    """Write a run as one HTML file that needs no network: evaluations, figures, and the clearest features.

    Args:
        run: A finished run or its folder.
        out: A new file, or an earlier page of saelab, which is replaced.
        index: Name of its feature index; ``main`` where it has one.
        features: Cards at most, chosen by `saelab.features.telling.RULE`.
        overlay: The folder in which evaluations and indexes of a read-only run were kept with ``out``.
        force: Replace a file that is none of ours too.

    Raises:
        UsageError: The run is neither evaluated nor indexed, or the file is something else's.
        DamagedFileError: A record or the index is not sound; nothing was written.
    """
    from saelab.viz.document import require_free_page, save_page
    from saelab.viz.report import Report, report_page

    if not 0 <= features <= MAX_FEATURES:
        raise UsageError(f"report: features must be from 0 to {MAX_FEATURES}, not {features:,}")
    out, folder = Path(out), None if overlay is None else Path(overlay)
    require_free_page(out, force=force)
    run = run if isinstance(run, Run) else open_run(run)
    evaluations = _evaluations(run, folder)
    opened = _index_of(run, index, folder)
    if not evaluations and opened is None:
        raise UsageError(
            f"{run.path} has nothing to report; measure it with: saelab evaluate {run.path}, or index its features "
            f"with: saelab index {run.path}"
        )
    page = report_page(
        Report(
            run=run.path.absolute().name,
            identity=sae_identity(run.path / SAE),
            facts=_facts(run),
            evaluations=evaluations,
            index=None if opened is None else _on_report(opened, features),
        )
    )
    return save_page(out, page, force=force)


def _opened(index: FeatureIndex | Run | Path | str) -> FeatureIndex:
    from saelab.api.indexing import open_index

    return open_index(index) if isinstance(index, Run | Path | str) else index


def _index_of(run: Run, name: str | None, overlay: Path | None) -> FeatureIndex | None:
    from saelab.api.indexing import open_index

    base = run.path if overlay is None else overlay / sae_identity(run.path / SAE)
    if name is None and not (base / INDEXES / "main" / MANIFEST_NAME).exists():
        return None
    return open_index(run, name or "main", out=overlay)


def _on_report(index: FeatureIndex, features: int) -> IndexOnReport:
    from saelab.features.telling import telling_features
    from saelab.viz.report import IndexOnReport

    rows = index.rows()
    return IndexOnReport(
        rows=rows,
        views=[index.feature(feature) for feature in telling_features(rows, features)],
        vocabulary=index.vocabulary,
        source=index.source,
        n_tokens=index.n_tokens,
        parts=_parts(index),
    )


def _parts(index: FeatureIndex) -> frozenset[str]:
    from saelab.features.spec import PARTS

    return frozenset(part for part in PARTS if index.has(part))


def _evaluations(run: Run, overlay: Path | None) -> dict[str, Mapping[str, Any]]:
    folder = evaluations_folder(run, overlay)
    if not (folder / MANIFEST_NAME).exists():
        return {}
    manifest = read_manifest(folder, "evaluations")
    found: dict[str, Mapping[str, Any]] = {}
    for name in sorted(manifest.files):
        check_file(folder, name, manifest)
        record = read_json(folder / name)
        read_metrics(record, str(folder / name))
        found[name.removesuffix(".json")] = record
    return found


def _facts(run: Run) -> dict[str, str]:
    sae = load_sae_config(run.path / SAE)
    settings = [f"{name} {value}" for name, value in sae.inference.items() if name != "name"]
    found = {
        "recipe": sae.recipe,
        "features": f"{sae.d_sae:,}, over activations of width {sae.d_in:,}",
        "hookpoint": ", ".join(sae.hook_aliases or sae.input_hooks),
        "reconstructs": "" if sae.output_hooks == sae.input_hooks else ", ".join(sae.output_hooks),
        "model": sae.model_name or "not known",
        "inference": ", ".join([str(sae.inference.get("name", "not known")), *settings]),
        "activation of a feature": sae.units or "units not known",
    }
    found |= _facts_of_training(run, sae) | {"identity of the SAE": sae_identity(run.path / SAE)}
    return {name: value for name, value in found.items() if value}


def _facts_of_training(run: Run, sae: SAEConfig) -> dict[str, str]:
    if (imported := run.imported) is not None:
        # The name of a folder, not its path: a page is made to be handed on.
        source = imported.source if imported.source.startswith("hf://") else Path(imported.source).name
        return {"imported from": f"{source} ({imported.format} {imported.architecture})"}
    training = run.config
    rate = "" if training.lr is None else f", learning rate {training.lr:g}"
    store = "made while training" if run.store_path is None else f"store {run.store_path.name}"
    return {
        "trained on": f"{training.tokens:,} tokens{rate}, seed {training.seed}",
        "activations": f"{store} ({sae.source_identity})" if sae.source_identity else store,
    }
