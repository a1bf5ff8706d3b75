"""Logits, neighbors and co-activation against brute force; code shards against the dense matrix."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from build_helpers import SMALL
from torch import nn

from saelab.features import schema
from saelab.features.building.logits import (
    FinalNorm,
    LogitLens,
    TokenLeaders,
    final_norm,
    find_lens,
    logit_blocks,
)
from saelab.features.codes import read_shard


@pytest.fixture(scope="module")
def logits(world):
    """Centred direct effects of every feature on every token, float64: the model's own norm and unembedding."""
    sae, model = world.run.sae(), world.lm.hf
    rows = sae.W_dec.double() * model.model.norm.weight.double()
    found = rows @ model.get_output_embeddings().weight.double().T
    return (found - found.mean(1, keepdim=True)).numpy()


def test_codes_are_the_dense_matrix(built, dense):
    paths = sorted((built / schema.CODES).iterdir())
    shards = [read_shard(path, dense.values.shape[1]) for path in paths]
    assert np.array_equal(torch.cat([shard.code.dense() for shard in shards]).numpy(), dense.values)
    assert np.array_equal(torch.cat([shard.token_index for shard in shards]).numpy(), dense.positions)


def test_logits_are_those_of_the_models_own_norm_and_unembedding(built, logits):
    numbers = pq.read_table(built / schema.FEATURES)
    assert np.allclose(numbers["logit_max"].to_numpy(), logits.max(1), atol=1e-4)
    assert np.allclose(numbers["logit_min"].to_numpy(), logits.min(1), atol=1e-4)
    kurtosis = (logits**4).mean(1) / (logits**2).mean(1) ** 2 - 3
    assert np.allclose(numbers["logit_kurtosis"].to_numpy(), kurtosis, atol=1e-3)
    for row in pq.read_table(built / schema.DETAIL).to_pylist():
        own = logits[row["feature"]]
        assert len(row["promoted"]) == SMALL.logits
        assert np.allclose(own[row["promoted"]], np.sort(own)[::-1][: SMALL.logits], atol=1e-4)
        assert np.allclose(own[row["suppressed"]], np.sort(own)[: SMALL.logits], atol=1e-4)
        assert sum(row["logit_counts"]) == logits.shape[1]
        assert len(row["logit_edges"]) == SMALL.logit_bins + 1


def test_the_inverse_holds_the_features_that_promote_a_token_most(built, logits):
    table = pq.read_table(built / schema.LOGIT_INVERSE)
    tokens, ranks = table["token"].to_numpy(), table["rank"].to_numpy()
    assert len(table) == logits.shape[1] * SMALL.logits
    for token in (0, 17, logits.shape[1] - 1):
        here = tokens == token
        assert ranks[here].tolist() == list(range(SMALL.logits))
        own = logits[:, token]
        found = own[table["feature"].to_numpy()[here]]
        assert np.allclose(found, np.sort(own)[::-1][: SMALL.logits], atol=1e-4)


def test_neighbors_are_exact(built, world):
    rows = torch.nn.functional.normalize(world.run.sae().W_dec.double(), dim=1)
    cosines = (rows @ rows.T).numpy()
    np.fill_diagonal(cosines, -2)
    table = pq.read_table(built / schema.NEIGHBORS)
    best = table["cosine"].to_numpy().reshape(len(rows), SMALL.neighbors)
    assert np.allclose(best, np.sort(cosines, axis=1)[:, ::-1][:, : SMALL.neighbors], atol=1e-5)
    others = table["other"].to_numpy().reshape(best.shape)
    assert np.allclose(np.take_along_axis(cosines, others.astype(np.int64), 1), best, atol=1e-5)
    assert (others != np.arange(len(rows))[:, None]).all()
    numbers = pq.read_table(built / schema.FEATURES)
    assert np.array_equal(numbers["max_decoder_cosine"].to_numpy(), best[:, 0])
    assert np.array_equal(numbers["max_decoder_cosine_feature"].to_numpy(), others[:, 0])


def test_coactivation_is_exact_where_the_sample_is_everything(built, dense):
    fired = dense.values > 0
    n = len(fired)
    densities = fired.mean(0)
    by_feature: dict[int, list[dict]] = {}
    for row in pq.read_table(built / schema.COACTIVATION).to_pylist():
        by_feature.setdefault(row["feature"], []).append(row)
    whole = [i for i in range(fired.shape[1]) if fired[:, i].sum() <= SMALL.coactivation_samples]
    assert len(whole) > 3
    for feature in whole:
        both = fired[fired[:, feature]].sum(0)
        both[feature] = 0
        phi = {
            j: np.corrcoef(fired[:, feature], fired[:, j])[0, 1] for j in np.flatnonzero(both >= 5).tolist()
        }
        wanted = sorted((value for value in phi.values() if value > 0), reverse=True)[: SMALL.neighbors]
        rows = by_feature.get(feature, [])
        assert [row["phi"] for row in rows] == pytest.approx(wanted, abs=1e-5)
        for row in rows:
            assert row["n_sampled"] == fired[:, feature].sum()
            assert row["n_both"] == both[row["other"]]
            assert row["p_other"] == pytest.approx(row["n_both"] / row["n_sampled"])
            assert row["lift"] == pytest.approx(row["p_other"] / densities[row["other"]], rel=1e-5)
            assert row["phi"] == pytest.approx(phi[row["other"]], abs=1e-5)
    assert n == len(dense.positions)


class Model(nn.Module):
    """A final norm and an unembedding."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_the_final_norm_is_measured(kind):
    torch.manual_seed(0)
    norm = kind(16)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    if kind is nn.LayerNorm:
        nn.init.normal_(norm.bias)

    found = final_norm(Model(norm), 16)
    assert found is not None
    assert torch.allclose(found.gain, norm.weight, atol=1e-3)
    assert found.centres == (kind is nn.LayerNorm)


def test_blocks_of_features_do_not_change_their_logits(monkeypatch):
    torch.manual_seed(0)
    lens = LogitLens(FinalNorm(torch.rand(8), True), torch.randn(30, 8))
    W_dec = torch.randn(13, 8)
    whole = next(logit_blocks(lens, W_dec, 5, 6))[0]
    monkeypatch.setattr("saelab.features.building.logits.BLOCK", 4)
    leaders = TokenLeaders(30, 3)
    parts = []
    for block, logits in logit_blocks(lens, W_dec, 5, 6):
        leaders.add(block.features, logits)
        parts.append(block)
    assert [part.features for part in parts] == [range(4), range(4, 8), range(8, 12), range(12, 13)]
    assert np.allclose(
        np.concatenate([part.promoted_logits for part in parts]), whole.promoted_logits, atol=1e-5
    )
    tokens, features, values = leaders.result()
    exact = lens.logits(W_dec).T
    assert tokens.tolist() == np.repeat(np.arange(30), 3).tolist()
    assert np.allclose(values.reshape(30, 3), exact.topk(3, dim=1).values, atol=1e-5)
    assert np.allclose(exact[tokens, features], values, atol=1e-5)


def test_an_sae_off_the_residual_stream_has_no_logits(world):
    config = world.run.sae().config
    assert isinstance(find_lens(world.lm, config), LogitLens)
    inside = next(h for h in world.lm.hookpoints if "mlp" in h.module_path and h.d_in != config.d_in)
    other = replace(
        config, output_hooks=(inside.module_path,), d_out=inside.d_in, output_widths=(inside.d_in,)
    )
    assert "width" in str(find_lens(world.lm, other))
    assert "no model" in str(find_lens(None, config))
    attention = next(h for h in world.lm.hookpoints if (h.alias or "").endswith("attn.hook_z"))
    of_heads = replace(config, output_hooks=(attention.module_path,))
    assert "does not add to the residual stream" in str(find_lens(world.lm, of_heads))
