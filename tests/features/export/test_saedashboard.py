"""SAEDashboard's batches: their keys and no others, and every number against the hand-made index."""

import json
import math

import numpy as np
import pytest
import torch
from export_helpers import QUIET, text_of
from index_helpers import D_SAE, DEAD_FEATURES, WINDOW

from saelab.features.export.options import IndexExportOptions
from saelab.features.export.saedashboard import write
from saelab.features.index import FeatureIndex
from saelab.features.schema import DETAIL, EXAMPLES, INTERVAL, TOP
from saelab.sae.files import load_sae

TOP_KEYS = ["model_id", "layer", "sae_set", "sae_id_suffix", "features"]
FEATURE_KEYS = [
    "feature_index",
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_l1",
    "correlated_neurons_pearson",
    "correlated_features_indices",
    "correlated_features_l1",
    "correlated_features_pearson",
    "neg_str",
    "neg_values",
    "pos_str",
    "pos_values",
    "frac_nonzero",
    "freq_hist_data_bar_values",
    "freq_hist_data_bar_heights",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
    "n_prompts_total",
    "n_tokens_in_prompt",
    "dataset",
    "decoder_weights_dist",
    "activations",
    "vector",
]
ACTIVATION_KEYS = ["bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"]
SKIPPED_KEYS = ["model_id", "layer", "sae_set", "log_sparsity", "skipped_indexes"]


@pytest.fixture(scope="module")
def folder(exported_run, tmp_path_factory):
    from saelab.features.index import open_index

    out = tmp_path_factory.mktemp("saedashboard") / "out"
    with open_index(exported_run) as index:
        files = write(index, out, QUIET)
    assert [path.name for path in files] == [
        "batch-0.json",
        "batch-1.json",
        "batch-2.json",
        "skipped_indexes.json",
    ]
    assert sorted(out.iterdir()) == sorted(files)
    return out


@pytest.fixture(scope="module")
def features(folder):
    batches = [json.loads((folder / f"batch-{number}.json").read_text()) for number in range(3)]
    assert [list(batch) for batch in batches] == [TOP_KEYS] * 3
    assert {(b["model_id"], b["layer"], b["sae_set"], b["sae_id_suffix"]) for b in batches} == {
        ("small-2b", 3, "saelab", None)
    }
    return {one["feature_index"]: one for batch in batches for one in batch["features"]}


def test_exactly_the_keys(folder, features):
    assert set(features) == set(range(D_SAE)) - set(DEAD_FEATURES)
    for one in features.values():
        assert sorted(one) == sorted(FEATURE_KEYS)
        assert all(list(activation) == ACTIVATION_KEYS for activation in one["activations"])
    skipped = json.loads((folder / "skipped_indexes.json").read_text())
    assert list(skipped) == SKIPPED_KEYS and skipped["skipped_indexes"] == list(DEAD_FEATURES)
    assert skipped["log_sparsity"] == round(math.log10(1 / 60), 3)


def test_numbers_of_a_feature(known, features, exported_run):
    decoder = load_sae(exported_run / "sae").W_dec.detach()
    for feature, one in features.items():
        detail = known.tables[DETAIL][feature]
        assert one["frac_nonzero"] == pytest.approx(known.row(feature)["density"], rel=1e-5)
        assert one["freq_hist_data_bar_values"] == [0.5, 1.5]
        assert one["freq_hist_data_bar_heights"] == detail["histogram_counts"]
        assert one["logits_hist_data_bar_values"] == [-0.5, 1.0]
        assert one["logits_hist_data_bar_heights"] == [9, 3]
        assert one["pos_str"] == [text_of(token) for token in detail["promoted"]] and one["pos_values"] == [
            2,
            1.5,
        ]
        assert one["neg_str"] == [text_of(token) for token in detail["suppressed"]] and one["neg_values"] == [
            -1
        ]
        assert (one["n_prompts_total"], one["n_tokens_in_prompt"]) == (4, 24)
        np.testing.assert_allclose(one["vector"], decoder[feature], rtol=1e-5)
        values, neurons = torch.topk(decoder[feature], 3)
        assert one["neuron_alignment_indices"] == neurons.tolist()
        np.testing.assert_allclose(one["neuron_alignment_values"], values, atol=5e-4)
        np.testing.assert_allclose(
            one["neuron_alignment_l1"], values / decoder[feature].abs().sum(), atol=5e-4
        )
        assert one["correlated_features_pearson"] == one["decoder_weights_dist"] == []


def test_examples_of_a_feature(known, features):
    for feature, one in features.items():
        rows = known.of(EXAMPLES, feature)
        shown = [row for row in rows if row["kind"] == TOP]
        shown += sorted(
            (row for row in rows if row["kind"] == INTERVAL), key=lambda row: (-row["bin"], row["rank"])
        )
        assert len(one["activations"]) == len(shown) > 0
        counts = [feature, 1]
        largest = round(known.row(feature)["max_act"], 3)
        for activation, row in zip(one["activations"], shown, strict=True):
            bounds = (activation["bin_min"], activation["bin_max"], activation["bin_contains"])
            if row["kind"] == TOP:
                assert bounds == (-1, pytest.approx(largest, abs=1e-3), -1)
            else:
                share = counts[row["bin"]] / (feature + 1)
                assert bounds == ([0, 2.5][row["bin"]], [2.5, 5][row["bin"]], pytest.approx(share, rel=1e-5))
            peak = activation["qualifying_token_index"]
            assert activation["values"][peak] == pytest.approx(row["activation"], abs=5e-4)
            assert len(activation["tokens"]) == len(activation["values"])
            assert activation["values"] == [round(value, 3) for value in activation["values"]]
            near = range(max(0, row["token_index"] - WINDOW), row["token_index"] + 1)
            dense = [known.dense[position, feature] for position in near]
            np.testing.assert_allclose(
                activation["values"][max(0, peak - WINDOW) : peak + 1][-1], dense[-1], atol=5e-4
            )


def test_the_same_export_has_the_same_bytes(folder, exported, tmp_path):
    again = write(exported, tmp_path / "again", QUIET)
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in again)


def test_an_index_without_its_run_has_no_vectors(exported_run, tmp_path):
    import shutil

    shutil.copytree(exported_run / "indexes" / "main", tmp_path / "alone")
    with FeatureIndex.open(tmp_path / "alone") as index:
        write(index, tmp_path / "out", IndexExportOptions(quiet=True, suffix="b"))
    batch = json.loads((tmp_path / "out" / "batch-0.json").read_text())
    assert batch["sae_id_suffix"] == "b"
    assert all(one["vector"] == one["neuron_alignment_indices"] == [] for one in batch["features"])
