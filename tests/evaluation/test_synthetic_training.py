"""Neurons resonate at the features' own frequency; SAEs trained on planted data find the features."""

import json
from dataclasses import replace

import pytest

from saelab.errors import UsageError
from saelab.evaluation.synthetic.experiment import (
    PLANTED,
    RECOVERY,
    RUNS,
    STORE,
    SyntheticConfig,
    run_synthetic,
)
from saelab.evaluation.synthetic.generator import ExactlyPlantedFeatures
from saelab.evaluation.synthetic.resonance import resonance
from saelab.evaluation.synthetic.spec import PlantedSpec
from saelab.training.grid import Grid
from saelab.training.passes import HowToTrain

CONFIG = SyntheticConfig(planted=PlantedSpec(), tokens=200 * 1024, rows=60_000, evaluation_rows=8192)
QUIET = HowToTrain(quiet=True)


def test_neurons_find_features_at_their_own_frequency_only():
    # 3 of 128 features are on, a frequency of 0.023.
    planted = ExactlyPlantedFeatures(active=(3,))
    small = {"n_neurons": 64, "iterations": 30, "rows": 4096}
    near, far = resonance(planted, 0.02, **small), resonance(planted, 0.2, **small)
    assert near.mean_cosine > 0.97 and far.mean_cosine < 0.75
    # 64 neurons on 128 features: at most about 1 - exp(-1/2) = 39 % of them, if each finds one.
    assert 0.25 < near.recovered < 0.45 and far.recovered == 0.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two seeds of TopK on Bernoulli features; the folder and the report."""
    folder = tmp_path_factory.mktemp("synthetic") / "out"
    grid = Grid(k=(4,), widths=(256,), lrs=(1e-2,), seeds=(0, 1))
    return folder, grid, run_synthetic(CONFIG, grid, folder, QUIET, batch=1024)


def test_topk_recovers_bernoulli_features_from_two_seeds(trained):
    _, _, report = trained
    assert len(report.runs) == 2
    for found in report.runs.values():
        assert found.recovery.frr_90 > 0.95 and found.recovery.one_to_one_90 > 0.95
        assert found.recovery.frr_80 >= found.recovery.frr_90
        assert found.recovery.mmcs > 0.98
        assert found.firing.matched == round(128 * found.recovery.one_to_one_90)
        # Four latents fire a row and three features are on: at most about 3/4 of the firing can be right.
        precision, recall = found.firing.precision, found.firing.recall
        assert precision is not None and 0.6 < precision < 0.8
        assert recall is not None and 0.75 < recall < 0.95
        fvu, l0 = found.reconstruction.fvu, found.reconstruction.l0
        assert fvu is not None and fvu < 0.2
        assert l0 is not None and 3 < l0 <= 4
    (alike,) = report.seeds.values()
    # Both hold the 128 planted directions, which is at least half of what is alive of 256.
    assert alike.pairs == 1 and 0.45 < alike.partnered_90 <= alike.mcs_90 <= 1


def test_a_dictionary_that_was_not_trained_recovers_little(tmp_path):
    report = run_synthetic(
        replace(CONFIG, tokens=1024), Grid(k=(4,), widths=(256,)), tmp_path / "out", QUIET, batch=512
    )
    (found,) = report.runs.values()
    assert found.recovery.frr_90 < 0.5
    assert report.seeds == {}


def test_the_same_call_again_trains_nothing_and_finds_the_same(trained):
    folder, grid, report = trained
    weights = sorted((folder / RUNS).rglob("weights.safetensors"))
    times = [path.stat().st_mtime_ns for path in weights]
    kept = (folder / RECOVERY).read_bytes()
    again = run_synthetic(CONFIG, grid, folder, QUIET, batch=1024)
    assert len(times) == 2 and [path.stat().st_mtime_ns for path in weights] == times
    assert (folder / RECOVERY).read_bytes() == kept
    assert (
        json.loads(kept)
        == json.loads(json.dumps(again.to_json()))
        == json.loads(json.dumps(report.to_json()))
    )


def test_other_data_are_refused_in_the_same_folder(trained):
    folder, grid, _ = trained
    other = replace(CONFIG, planted=PlantedSpec(mean_active=2.0))
    with pytest.raises(UsageError, match=r"holds other planted data \(mean_active: 3.0 there, 2.0 now\)"):
        run_synthetic(other, grid, folder, QUIET, batch=1024)


def test_a_store_that_was_not_finished_is_made_again_and_strangers_are_left(tmp_path):
    small = SyntheticConfig(planted=PlantedSpec(), tokens=256, rows=2000, evaluation_rows=100)
    grid = Grid(k=(4,), widths=(64,))
    folder = tmp_path / "out"
    run_synthetic(small, grid, folder, QUIET, batch=128)
    kept = (folder / RECOVERY).read_bytes()
    for name in (RECOVERY, f"{STORE}/manifest.json"):
        (folder / name).unlink()
    run_synthetic(small, grid, folder, QUIET, batch=128)
    assert (folder / RECOVERY).read_bytes() == kept
    (folder / PLANTED).unlink()
    with pytest.raises(UsageError, match="holds other files"):
        run_synthetic(small, grid, folder, QUIET, batch=128)
    with pytest.raises(UsageError, match="rows and evaluation_rows"):
        run_synthetic(replace(small, rows=0), grid, tmp_path / "new", QUIET)
    assert not (tmp_path / "new").exists()
