"""Neuronpedia's import folder: `{model}/{layer}-{set}[__suffix]/` with what there is, and lines in packed batches.

Every line has all keys of its table, lists that an index does not have are empty, and ids follow from what a line is
of, so that importing twice adds nothing. A batch without a line has no file. `layers` and `neuronsPerLayer` of the
model are 0: an index does not know them. We have not loaded such a folder into a live site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from saelab.features.export.facts import (
    Shown,
    clean,
    decoder_rows,
    rounded,
    shared_keys,
    shown_examples,
    shown_tokens,
    vector_of,
)
from saelab.features.export.folder import new_folder, write_lines
from saelab.features.export.names import Names, names_of
from saelab.features.export.neuronpedia_source import model_line, release_line, source_line, source_set_line
from saelab.features.export.options import IndexExportOptions
from saelab.features.index import FeatureIndex
from saelab.features.labels.label import Label
from saelab.features.labels.neuronpedia import explanation_line, stable_id
from saelab.features.records import FeatureView
from saelab.progress import Progress

Lines = list[dict[str, Any]]


def write(index: FeatureIndex, out: Path, options: IndexExportOptions) -> list[Path]:
    """Write an index as a folder that Neuronpedia imports.

    Args:
        index: The index; the labels that it shows become explanations.
        out: A new folder, which holds the model's.
        options: Names and sizes.

    Returns:
        Every file.

    Raises:
        UsageError: Something is in that place, or a name is not known.
        SaelabError: The folder cannot be written.
        DamagedFileError: The index or the SAE is damaged.
    """
    names = names_of(index, options)
    place = f"{names.model}/{names.source.source_id}"
    written = []
    with (
        new_folder(out) as folder,
        Progress("export", index.d_sae, "features", quiet=options.quiet) as progress,
    ):
        for name, lines in _files(index, names, options, progress.advance):
            write_lines(folder / place / name, lines)
            written.append(out / place / name)
    return written


def _files(
    index: FeatureIndex, names: Names, options: IndexExportOptions, advance: Callable[[int], None]
) -> Iterator[tuple[str, Lines]]:
    yield "release.jsonl", [release_line(index, names, options)]
    yield "model.jsonl", [model_line(index, names, options)]
    yield "sourceset.jsonl", [source_set_line(index, names, options)]
    yield "source.jsonl", [source_line(index, names, options)]
    for number, start in enumerate(range(0, index.d_sae, options.batch)):
        features = range(start, min(index.d_sae, start + options.batch))
        lines: dict[str, Lines] = {"features": [], "activations": [], "explanations": []}
        for feature, row in zip(features, decoder_rows(index, features), strict=True):
            view = index.feature(feature, context=options.context)
            vector = vector_of(row, options.vectors)
            shared = shared_keys(index, view, row)
            lines["features"].append(_feature_line(index, view, shared, vector, names, options))
            lines["activations"] += [
                _activation_line(index, one, names, options) for one in shown_examples(view)
            ]
            if feature in index.labels:
                label = Label(feature=feature, text=clean(index.labels[feature]))
                lines["explanations"].append(
                    explanation_line(
                        label, names.source, index.sae_identity, options.creator, options.created
                    )
                )
            advance(1)
        yield from ((f"{kind}/batch-{number}.jsonl.gz", found) for kind, found in lines.items() if found)


def _feature_line(
    index: FeatureIndex,
    view: FeatureView,
    shared: dict[str, Any],
    vector: list[float],
    names: Names,
    options: IndexExportOptions,
) -> dict[str, Any]:
    return {
        "modelId": names.model,
        "layer": names.source.source_id,
        "index": str(view.row.feature),
        "creatorId": options.creator,
        "createdAt": options.created,
        "maxActApprox": rounded(view.row.max_act or 0.0),
        "hasVector": bool(vector),
        "vector": vector,
        "vectorLabel": None,
        "vectorDefaultSteerStrength": rounded(view.row.max_act or 0.0) if vector else None,
        "hookName": names.hook or None,
        "topkCosSimIndices": [one.other for one in view.neighbors],
        "topkCosSimValues": [rounded(one.cosine) for one in view.neighbors],
        **shared,
        "sourceSetName": names.sae_set,
    }


def _activation_line(
    index: FeatureIndex, one: Shown, names: Names, options: IndexExportOptions
) -> dict[str, Any]:
    example = one.example
    values = [rounded(value) for value in example.activations]
    largest = max(values)
    return {
        "id": stable_id(index.sae_identity, names.model, names.source.source_id, example.feature, one.rank),
        "tokens": shown_tokens(index, example.tokens),
        "index": str(example.feature),
        "layer": names.source.source_id,
        "modelId": names.model,
        "maxValue": largest,
        "maxValueTokenIndex": values.index(largest),
        "minValue": min(values),
        "values": values,
        "creatorId": options.creator,
        "dataSource": names.dataset,
        "dataIndex": str(example.document),
        "dfaValues": [],
        "dfaTargetIndex": None,
        "dfaMaxValue": None,
        "createdAt": options.created,
        "lossValues": [],
        "logitContributions": None,
        "binMin": one.bin_min,
        "binMax": one.bin_max,
        "binContains": one.bin_contains,
        "qualifyingTokenIndex": example.peak,
        "zIndices": [],
        "zValues": [],
    }
