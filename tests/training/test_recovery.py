"""A TopK SAE finds planted features, and the finished SAE speaks in raw units."""

import pytest
import torch

from saelab.activations.source import StoreSource
from saelab.activations.store import Store
from saelab.api import train, train_config
from saelab.evaluation.synthetic.generator import PlantedFeatures
from saelab.evaluation.synthetic.recovery import feature_recovery
from saelab.training.finish import finished_sae
from saelab.training.member import make_member


def test_topk_recovers_planted_features(tmp_path):
    planted = PlantedFeatures(n_features=128, d_in=42, mean_active=3.0, seed=0)
    x = torch.cat([planted.batch(index, 8192).x for index in range(32)])
    store = Store.from_tensors(tmp_path / "store", x, dtype="float32")
    run = train(
        store,
        "topk",
        recipe_options={"k": 4},
        width=256,
        tokens=3_000 * 512,
        batch=512,
        lr=2e-3,
        normalisation="none",
        out=tmp_path / "run",
        quiet=True,
    )
    W_dec = run.sae().W_dec
    assert feature_recovery(W_dec, planted.directions(), 0.8) == 1.0
    assert feature_recovery(W_dec, planted.directions(), 0.9) >= 0.99


def untrained_sae(config, store, folder):
    """The SAE as it is before the first step, finished, and its optional threshold."""
    source = StoreSource(store)
    return finished_sae(make_member("state", config, source, folder), source)


@pytest.mark.parametrize("normalisation", ["scale", "none"])
def test_the_folded_sae_reproduces_the_trained_one_in_raw_units(store, make_config, tmp_path, normalisation):
    source = StoreSource(store)
    trainer = make_member("state", make_config(normalisation=normalisation), source, tmp_path)
    with torch.no_grad():
        trainer.params.b_enc.normal_(generator=torch.Generator().manual_seed(0))
    x = store.rows(None, "train", 0, 64).x
    sae, _ = finished_sae(trainer, source)
    factor = trainer.views.inputs[0].normalisation.factor
    u = (x * factor - trainer.params.b_dec) @ trainer.params.W_enc + trainer.params.b_enc
    kept = torch.zeros_like(u).scatter(1, u.topk(4, dim=1).indices, 1.0)
    expected = ((torch.relu(u) * kept) @ trainer.params.W_dec + trainer.params.b_dec) / factor
    torch.testing.assert_close(sae(x), expected.detach(), rtol=1e-4, atol=1e-5)
    assert sae.config.input_normalisation.kind == "none"
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48))


@pytest.mark.parametrize("normalisation", ["layer_norm", "unit_norm"])
def test_a_normalisation_of_each_token_stays_and_says_so(store, make_config, tmp_path, normalisation):
    sae, optional = untrained_sae(make_config(normalisation=normalisation), store, tmp_path)
    x = store.rows(None, "train", 0, 32).x
    assert sae.config.input_normalisation.kind == normalisation
    assert "relative to each token's scale" in sae.config.units
    assert optional is None
    torch.testing.assert_close(sae(3 * x), 3 * sae(x), rtol=1e-3, atol=1e-3)
    with pytest.raises(Exception, match="call reconstruct"):
        sae.decode(sae.encode(x))


def test_the_optional_threshold_gives_the_same_mean_number_of_features(store, make_config, tmp_path):
    sae, theta = untrained_sae(make_config(), store, tmp_path)
    x = store.rows(None, "train", 0, store.n_rows(None, "train")).x
    u = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    assert float((u > theta).double().sum(1).mean()) == pytest.approx(4, rel=2e-3)


def test_the_threshold_is_calibrated_over_all_rows_not_the_first(tmp_path):
    x = torch.randn(40_960, 8, generator=torch.Generator().manual_seed(0))
    x[20_000:] *= 3
    store = Store.from_tensors(tmp_path / "store", x, dtype="float32")
    config = train_config(store, "topk", recipe_options={"k": 4}, width=32, tokens=640, batch=64)
    sae, theta = untrained_sae(config, store, tmp_path)
    x = store.rows(None, "train", 0, store.n_rows(None, "train")).x
    u = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    assert float((u > theta).double().sum(1).mean()) == pytest.approx(4, rel=0.05)
