"""A planted feature is found first, whatever the size of the blocks."""

import numpy as np
import pytest
import torch

from saelab.errors import Interrupted, UsageError
from saelab.features.codes import CodeShard
from saelab.features.find.pooled import PooledCodes
from saelab.features.find.rank import rank_features
from saelab.features.find.result import neutral
from saelab.features.find.spec import FindConfig, read_set
from saelab.features.find.units import label_units
from saelab.features.find.watch import Watch
from saelab.interrupts import StopRequest
from saelab_kernels.code import SparseCode

N, D, PLANTED = 1200, 50, 17


@pytest.fixture
def planted():
    chance = np.random.default_rng(0)
    dense = chance.random((N, D)) * (chance.random((N, D)) < 0.2)
    unit = np.arange(N) // 4
    positive = chance.random(N // 4) < 0.2
    dense[:, PLANTED] = 0
    dense[np.flatnonzero(positive) * 4 + 1, PLANTED] = 2.0
    document = np.arange(N // 4) // 10
    keys = [f"d{i}" for i in range(document[-1] + 1)]
    units = label_units(unit, np.ones(N, dtype=bool), document, positive, ~positive, keys, 0)
    return dense, units, [shard(dense, 0, 502), shard(dense, 502, N)]


def shard(dense, start, stop):
    part = torch.tensor(dense[start:stop], dtype=torch.float32)
    return CodeShard(token_index=torch.arange(start, stop), code=SparseCode.from_dense(part).ragged())


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("pairs", [300, 10**6])
def test_pooling_is_that_of_the_dense_matrix(planted, pool, pairs):
    dense, units, shards = planted
    found = np.zeros((D, len(units.positive)))
    codes = PooledCodes(shards=lambda: shards, units=units, d_sae=D, pool=pool, pairs=pairs, watch=Watch())
    for block in codes.blocks(codes.counts(), "reading"):
        found[block.feature, block.unit] = block.value
    by_unit = dense.astype(np.float32).astype(float).reshape(-1, 4, D)
    wanted = by_unit.max(axis=1) if pool == "max" else by_unit.mean(axis=1)
    assert np.allclose(found, wanted.T)


@pytest.mark.parametrize("pairs", [300, 10**6])
def test_the_planted_feature_is_first(planted, pairs):
    _, units, shards = planted
    ranking = rank_features(lambda: shards, units, D, FindConfig(limit=5, draws=99, pairs=pairs))
    best = ranking.features[0]
    assert (best.feature, best.auroc, best.f1, best.mean_positive, best.mean_negative) == (
        PLANTED,
        1,
        1,
        2,
        0,
    )
    held = units.heldout
    assert best.density == pytest.approx(units.positive[held].mean())
    assert best.lift == pytest.approx(1 / units.positive[held].mean())
    assert best.p_adjusted == pytest.approx(0.01)
    assert ranking.features[1].auroc < 0.7


def test_blocks_change_nothing(planted):
    _, units, shards = planted
    whole, cut = (
        rank_features(lambda: shards, units, D, FindConfig(limit=7, draws=40, pairs=pairs))
        for pairs in (10**6, 10)
    )
    assert whole == cut


@pytest.mark.parametrize("checks", [1, 2, 5, 20, 60])
def test_a_search_ends_when_it_is_asked_to(planted, monkeypatch, checks):
    _, units, shards = planted
    stop, check, calls = StopRequest(), Watch.check, []

    def counting(self):
        calls.append(1)
        if len(calls) == checks:
            stop.ask()
        check(self)

    monkeypatch.setattr(Watch, "check", counting)
    with pytest.raises(Interrupted, match="nothing was written"):
        rank_features(lambda: shards, units, D, FindConfig(limit=5, draws=99), Watch(N, stop))
    assert len(calls) == checks


def test_a_search_shows_how_far_it_is(planted, capsys):
    _, units, shards = planted
    rank_features(lambda: shards, units, D, FindConfig(limit=5, draws=99), Watch(N, quiet=False))
    shown = capsys.readouterr().err
    assert f"counting codes: {N:,} tokens" in shown and f"comparing: {N:,} tokens" in shown
    assert "placing at random: 495 placements" in shown


def test_documents_are_in_one_half(planted):
    _, units, _ = planted
    for document in np.unique(units.document):
        assert len(set(units.heldout[units.document == document].tolist())) == 1


@pytest.mark.parametrize("given", ["re:(", "re:a*", "column:x", "column:=1", " "])
def test_sets_that_cannot_be_read(given):
    with pytest.raises(UsageError, match="find: "):
        read_set(given)


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@a", "\ta", "\ra"])
def test_no_cell_is_a_formula(text):
    assert neutral(text) == f"'{text}"
    assert neutral("plain") == "plain"
