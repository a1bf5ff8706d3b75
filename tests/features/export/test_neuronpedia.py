"""Neuronpedia's import folder: frozen key lists, stable ids, equal bytes."""

import gzip
import json
from dataclasses import replace

import pytest
from export_helpers import QUIET
from index_helpers import D_SAE, DEAD_FEATURES

from saelab.features.export.neuronpedia import write
from saelab.features.labels.exchange import import_labels
from saelab.features.labels.label import Label
from saelab.features.labels.places import read_labels
from saelab.features.schema import EXAMPLES, INTERVAL, NEIGHBORS, TOP

KEYS = {
    "release": "name description creatorName creatorId visibility isNewUi featured descriptionShort urls creatorEmail "
    "creatorNameShort defaultSourceSetName defaultSourceId defaultUmapSourceIds createdAt",
    "model": "id instruct creatorId displayNameShort displayName tlensId dimension visibility defaultSourceSetName "
    "defaultSourceId inferenceEnabled layers neuronsPerLayer createdAt owner updatedAt website",
    "sourceset": "modelId name creatorId hasDashboards visibility description type creatorName urls creatorEmail "
    "releaseName defaultOfModelId defaultRange defaultShowBreaks showDfa showCorrelated showHeadAttribution showUmap "
    "createdAt",
    "source": "id modelId setName creatorId hasDashboards inferenceEnabled inferenceHosts saelensConfig saelensRelease "
    "saelensSaeId hfRepoId hfFolderId visibility defaultOfModelId hasUmap hasUmapLogSparsity hasUmapClusters "
    "num_prompts num_tokens_in_prompt dataset notes createdAt",
    "features": "modelId layer index creatorId createdAt maxActApprox hasVector vector vectorLabel "
    "vectorDefaultSteerStrength hookName topkCosSimIndices topkCosSimValues neuron_alignment_indices "
    "neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices correlated_neurons_l1 "
    "correlated_neurons_pearson correlated_features_indices correlated_features_l1 correlated_features_pearson neg_str "
    "neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_heights freq_hist_data_bar_values "
    "logits_hist_data_bar_heights logits_hist_data_bar_values decoder_weights_dist sourceSetName",
    "activations": "id tokens index layer modelId maxValue maxValueTokenIndex minValue values creatorId dataSource "
    "dataIndex dfaValues dfaTargetIndex dfaMaxValue createdAt lossValues logitContributions binMin binMax binContains "
    "qualifyingTokenIndex zIndices zValues",
    "explanations": "id modelId layer index description authorId embedding triggeredById typeName explanationModelName "
    "notes createdAt",
}
DATED = replace(QUIET, sae_set="res", suffix="x", created="2026-01-31T00:00:00Z")
PLACE = "small-2b/3-res__x"


@pytest.fixture
def folder(exported, tmp_path):
    exported.use_labels({1: "one\0", 20: "twenty"})
    files = write(exported, tmp_path / "out", DATED)
    assert sorted(files) == sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    return tmp_path / "out" / PLACE


def lines(folder, kind):
    return [
        json.loads(line)
        for number in range(3)
        if (path := folder / kind / f"batch-{number}.jsonl.gz").exists()
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]


def test_every_line_has_exactly_the_keys(folder):
    for kind in ("release", "model", "sourceset", "source"):
        (line,) = (folder / f"{kind}.jsonl").read_text().splitlines()
        assert sorted(json.loads(line)) == sorted(KEYS[kind].split())
    for kind in ("features", "activations", "explanations"):
        found = lines(folder, kind)
        assert found and {tuple(sorted(line)) for line in found} == {tuple(sorted(KEYS[kind].split()))}
        assert len({tuple(line) for line in found}) == 1  # the same order too
        assert {(line["modelId"], line["layer"]) for line in found} == {("small-2b", "3-res__x")}
        assert {line["createdAt"] for line in found} == {"2026-01-31T00:00:00Z"}


def test_features(folder, known):
    found = lines(folder, "features")
    assert [line["index"] for line in found] == [str(feature) for feature in range(D_SAE)]
    for feature, line in enumerate(found):
        expected = 0 if feature in DEAD_FEATURES else round(known.row(feature)["max_act"], 3)
        assert line["maxActApprox"] == pytest.approx(expected, abs=1e-3)
        assert line["topkCosSimIndices"] == [row["other"] for row in known.of(NEIGHBORS, feature)]
        assert line["topkCosSimValues"] == [0.9, 0.8, 0.7, 0.6]
        assert line["hasVector"] and len(line["vector"]) == 8
        assert line["hookName"] == "blocks.3.hook_resid_post" and line["sourceSetName"] == "res"


def test_activations(folder, known):
    found = lines(folder, "activations")
    rows = [row for row in known.tables[EXAMPLES] if row["kind"] in (TOP, INTERVAL)]
    assert len(found) == len(rows)
    ids = [line["id"] for line in found]
    assert len(set(ids)) == len(ids) and all(
        len(one) == 25 and one[0] == "c" and one.isalnum() for one in ids
    )
    assert {line["index"] for line in found} == {str(row["feature"]) for row in rows}
    for line in found:
        assert line["maxValue"] == max(line["values"]) == line["values"][line["maxValueTokenIndex"]]
        assert line["minValue"] == min(line["values"]) and len(line["tokens"]) == len(line["values"])
        assert 0 <= line["qualifyingTokenIndex"] < len(line["tokens"])
        assert (line["binMin"] == -1) == (line["binContains"] == -1)


def test_explanations_are_the_labels_and_come_back(folder, exported, exported_run, tmp_path):
    import shutil

    assert [(line["index"], line["description"]) for line in lines(folder, "explanations")] == [
        ("1", "one "),
        ("20", "twenty"),
    ]
    assert not (folder / "explanations" / "batch-2.jsonl.gz").exists()  # it would have no line
    run = tmp_path / "copy"
    shutil.copytree(exported_run, run)
    import_labels(run, folder / "explanations" / "batch-0.jsonl.gz")
    assert read_labels(run) == (Label(feature=1, text="one", created="2026-01-31T00:00:00Z"),)


def test_the_same_export_has_the_same_bytes(folder, exported, tmp_path):
    for path in write(exported, tmp_path / "again", DATED):
        first = tmp_path / "out" / path.relative_to(tmp_path / "again")
        assert path.read_bytes() == first.read_bytes()
