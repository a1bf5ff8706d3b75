"""What holds for every recipe: resumed, extended and grouped runs are the same bits, and what is saved is whole."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from memory_source import MemorySource
from training_helpers import StopAfter, data_files

from saelab.errors import Interrupted
from saelab.interrupts import StopRequest
from saelab.sae.files import load_feature_statistics
from saelab.storage.inspect import verify_folder
from saelab.training.config import train_config_from_json
from saelab.training.grid import Grid, make_configs
from saelab.training.group import train_group
from saelab.training.passes import HowToTrain
from saelab.training.recipes import RECIPES
from saelab.training.run import Run
from saelab.training.single import train_run

BATCH, WIDTH, STEPS = 64, 48, 24
CERTAINTY = ("paper", "reference code", "derived", "reconstruction", "measured")


@pytest.fixture(scope="module")
def source():
    return MemorySource()


@pytest.fixture(params=sorted(RECIPES))
def config(request, source):
    return small_config(request.param, source)


def small_config(name, source, steps=STEPS):
    several = name == "crosscoder"
    grid = Grid(
        recipes=(name,), k=(4,), at=("a", "b") if several else ("a",), target_at=("b",), widths=(WIDTH,)
    )
    return make_configs(
        source, grid, tokens=steps * BATCH, batch=BATCH, checkpoint_every=5, log_every=3, device="cpu"
    )[0]


def run(config, source, folder, **how) -> Run:
    return train_run(config, source, Path(folder), HowToTrain(quiet=True, **how))


def test_an_interrupted_run_ends_with_the_same_bits(config, source, tmp_path):
    run(config, source, tmp_path / "straight")
    for looks in (3, 9, 6):
        with pytest.raises(Interrupted):
            run(config, source, tmp_path / "stopped", stop=StopAfter(looks))
    run(config, source, tmp_path / "stopped", stop=StopRequest())
    assert data_files(tmp_path / "stopped") == data_files(tmp_path / "straight")


def test_an_extended_run_is_one_that_was_planned_so(config, source, tmp_path):
    longer = config.extended(36 * BATCH)
    run(config, source, tmp_path / "extended")
    run(longer, source, tmp_path / "extended")
    run(longer, source, tmp_path / "planned")
    extended, planned = (data_files(tmp_path / name) for name in ("extended", "planned"))
    assert {name: extended[name] for name in planned if not name.startswith("checkpoints")} == {
        name: content for name, content in planned.items() if not name.startswith("checkpoints")
    }


def test_a_member_of_a_group_equals_the_same_sae_alone(config, source, tmp_path):
    topk = small_config("topk", source)
    other = config if config.recipe.name != "topk" else replace(config, seed=1)
    group = train_group([topk, other], source, tmp_path / "group", HowToTrain(quiet=True))
    alone = run(other, source, tmp_path / "alone")
    name = next(name for name, member in group.members.items() if member == other)
    weights = [
        (path / "sae" / "weights.safetensors").read_bytes() for path in (alone.path, group.path / name)
    ]
    assert weights[0] == weights[1]


def test_what_is_saved_is_whole_and_in_its_units(config, source, tmp_path):
    folder = run(config, source, tmp_path / "run").path
    assert verify_folder(folder).problems == []
    sae = Run.open(folder).sae()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(WIDTH), rtol=1e-5, atol=1e-5)
    x = torch.cat([source.x[hook][:256] for hook in config.input_hooks], 1)
    target = torch.cat([source.x[hook][:256] for hook in config.target_hooks], 1)
    x_hat, code = sae.reconstruct(x)
    assert x_hat.shape == target.shape
    assert torch.isfinite(x_hat).all()
    assert (code.values >= 0).all()
    statistics = load_feature_statistics(folder / "sae")
    assert statistics.density.sum() == pytest.approx(float(statistics.count.sum()) / statistics.n_tokens)


def test_a_configuration_survives_its_file_and_the_docstring_names_its_sources(config):
    assert train_config_from_json(config.to_json(), "here") == config
    text = (type(config.recipe).__doc__ or "").lower()
    assert any(word in text for word in CERTAINTY), "the docstring says how certain each part is"
    assert "arxiv" in text or "reference code" in text or "transformer-circuits" in text
