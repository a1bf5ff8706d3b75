"""A run that starts from a finished SAE starts as that SAE, whatever the scale of its own data."""

from dataclasses import replace

import pytest
import torch

from saelab.activations.source import StoreSource
from saelab.activations.store import Store
from saelab.api import train_config
from saelab.errors import UsageError
from saelab.sae.normalisation import normalise
from saelab.storage.files import write_json
from saelab.storage.manifest import read_manifest
from saelab.training.__main__ import main
from saelab.training.member import make_member
from saelab.training.passes import HowToTrain
from saelab.training.single import train_run
from saelab.training.warm_start import open_warm_start


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    config = train_config(store, "topk", recipe_options={"k": 4}, width=48, lr=1e-2, batch=64, tokens=40 * 64)
    source = StoreSource(store)
    return train_run(config, source, tmp_path_factory.mktemp("warm") / "run", HowToTrain(quiet=True))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_first_weights_are_those_of_the_sae_in_the_units_of_the_new_run(trained, store, tmp_path, scale):
    x = store.rows(None, "train", 0, 2000).x
    other = Store.from_tensors(tmp_path / "other", scale * x + 0.1, dtype="float32")
    warm = open_warm_start(trained.path)
    config = train_config(other, "topk", recipe_options={"k": 4}, width=48, batch=64, tokens=640)
    config = replace(config, init_from=warm.identity)
    member = make_member("state", config, StoreSource(other), tmp_path, warm)
    sae = trained.sae()
    factor = member.views.inputs[0].normalisation.factor
    assert factor != pytest.approx(1.0)
    raw = other.rows(None, "train", 0, 64).x
    scaled = normalise(raw, member.views.inputs[0].normalisation)[0] - member.params.b_dec
    u = scaled @ member.params.W_enc + member.params.b_enc
    expected = factor * ((raw - sae.b_dec) @ sae.W_enc + sae.b_enc)
    torch.testing.assert_close(u, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(member.params.W_dec.detach(), sae.W_dec.detach())
    assert member.params.W_enc.T.is_contiguous(), "the memory order that the kernels read fastest"


def test_a_warm_start_begins_where_the_other_run_ended(trained, store, tmp_path):
    warm = open_warm_start(trained.path)
    config = replace(trained.config, init_from=warm.identity, lr=1e-4, tokens=64, seed=5)
    train_run(config, StoreSource(store), tmp_path / "warm", HowToTrain(quiet=True, warm=warm))
    cold = replace(config, init_from=None)
    train_run(cold, StoreSource(store), tmp_path / "cold", HowToTrain(quiet=True))
    fvu = {
        name: float((tmp_path / name / "metrics.jsonl").read_text().split('"fvu": ')[1].split(",")[0])
        for name in ("warm", "cold")
    }
    assert fvu["warm"] < 0.7 * fvu["cold"]
    record = read_manifest(tmp_path / "warm").content["init_from"]
    assert record == {"sae": warm.identity, "name": "run", "model_mismatch": None}


def test_an_sae_that_does_not_fit_is_refused(trained, store, tmp_path):
    warm = open_warm_start(trained.path)
    how = HowToTrain(quiet=True, warm=warm)
    config = replace(trained.config, init_from=warm.identity)
    with pytest.raises(UsageError, match="has 48 features, this run is to have 32; leave --width out"):
        train_run(replace(config, width=32), StoreSource(store), tmp_path / "a", how)
    with pytest.raises(UsageError, match="which cannot become layer_norm"):
        train_run(replace(config, normalisation="layer_norm"), StoreSource(store), tmp_path / "b", how)
    with pytest.raises(UsageError, match="give the SAE that it names with --init-from"):
        train_run(config, StoreSource(store), tmp_path / "c", HowToTrain(quiet=True))
    wide = Store.from_tensors(tmp_path / "wide", torch.randn(3000, 8), dtype="float32")
    other = replace(
        train_config(wide, "topk", recipe_options={"k": 4}, width=48, batch=64, tokens=640),
        init_from=warm.identity,
    )
    with pytest.raises(UsageError, match="its width at custom is 16, here it is 8"):
        train_run(other, StoreSource(wide), tmp_path / "d", how)


def test_the_bare_entry_point_starts_from_an_sae_too(trained, store, tmp_path):
    warm = open_warm_start(trained.path)
    config = replace(trained.config, init_from=warm.identity, tokens=64)
    write_json(tmp_path / "config.json", config.to_json())
    options = {"config": tmp_path / "config.json", "store": store.path, "out": tmp_path / "run"}
    options |= {"init-from": trained.path}
    main([part for name, place in options.items() for part in (f"--{name}", str(place))])
    assert read_manifest(tmp_path / "run").content["init_from"]["sae"] == warm.identity
