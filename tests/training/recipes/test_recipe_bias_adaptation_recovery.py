"""Bias adaptation trained: the directions of the published toy data are found, and the defaults keep to k.

The trainings run in processes of their own, where annotations are not checked at every call of thousands of steps.
"""

import json

import pytest
import torch
from commands import start_python

from saelab.activations.store import Store
from saelab.api import train_config
from saelab.evaluation.synthetic.generator import ExactlyPlantedFeatures
from saelab.evaluation.synthetic.recovery import feature_recovery
from saelab.training.bias_groups import FrequencyRange
from saelab.training.run import Run

BATCH, BLOCK, WIDTH = 512, 16_384, 256
HIGHEST, LOWEST = 0.05, 0.002


def trained(config, store, tmp_path):
    place = tmp_path / "config.json"
    place.write_text(json.dumps(config.to_json()))
    arguments = ("--config", place, "--store", store.path, "--out", tmp_path / "run")
    process = start_python("from saelab.training.__main__ import main; main()", *arguments)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return Run.open(tmp_path / "run").sae()


def test_the_fast_configuration_recovers_the_directions_and_keeps_to_its_frequencies(tmp_path):
    planted = ExactlyPlantedFeatures(n_features=128, d_in=42, active=(3, 20), seed=0)
    x = torch.cat([planted.batch(index, BLOCK).x for index in range(8)])
    store = Store.from_tensors(tmp_path / "store", x, dtype="float32")
    toy = {"highest_frequency": HIGHEST, "lowest_frequency": LOWEST, "centre": "zero", "start": "zero"}
    config = train_config(
        store,
        "group-bias-adaptation",
        width=WIDTH,
        tokens=5_000 * BATCH,
        batch=BATCH,
        lr=2e-3,
        recipe_options=toy | {"adapt_every": 10},
        device="cpu",
        checkpoint_every=5_000,
    )
    assert config.normalisation == "unit_norm"
    sae = trained(config, store, tmp_path)
    assert feature_recovery(sae.W_dec, planted.directions(), 0.8) >= 0.98
    assert feature_recovery(sae.W_dec, planted.directions(), 0.9) >= 0.95
    frequency = sae.encode(planted.batch(1000, BLOCK).x).firing_counts() / BLOCK
    frequencies = FrequencyRange(10, HIGHEST, LOWEST)
    target = frequencies.targets()[frequencies.group_of(WIDTH)]
    assert (frequency <= target + 3 * (target / BLOCK).sqrt()).all()


@pytest.mark.parametrize("name", ["bias-adaptation", "group-bias-adaptation"])
def test_a_short_training_with_the_defaults_explains_planted_data_with_at_most_k_features(
    store, tmp_path, name
):
    config = train_config(
        store, name, width=48, tokens=400 * 64, batch=64, lr=1e-2, recipe_options={"k": 6}, device="cpu"
    )
    sae = trained(config, store, tmp_path)
    x = store.rows(None, "heldout", 0, 190).x
    x_hat, code = sae.reconstruct(x)
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu < 0.3
    assert 2 < code.l0().float().mean() <= 6.3
