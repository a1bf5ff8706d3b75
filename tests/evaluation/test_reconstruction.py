"""Reconstruction metrics against closed forms, and the same for any division into batches."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.evaluation.reconstruction import ReconstructionAccumulator, ReconstructionMetrics
from saelab_kernels.code import SparseCode


def measured(x, x_hat, dense, cuts=()):
    """Run the accumulator over rows cut at the given places."""
    accumulator = ReconstructionAccumulator(d_out=x.shape[1], d_sae=dense.shape[1])
    edges = [0, *sorted(cuts), len(x)]
    for start, stop in itertools.pairwise(edges):
        piece = slice(start, stop)
        accumulator.update(x[piece], x_hat[piece], SparseCode.from_dense(dense[piece]))
    return accumulator


def random_case(n=200, d=7, d_sae=30, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) + offset
    x_hat = x + 0.3 * torch.randn(n, d, generator=generator)
    dense = torch.randn(n, d_sae, generator=generator).relu() * (
        torch.rand(n, d_sae, generator=generator) < 0.1
    )
    return x, x_hat, dense


def test_a_case_of_three_tokens_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 1.0]])
    x_hat = torch.tensor([[1.0, 1.0], [0.0, 1.0], [2.0, 1.0]])
    dense = torch.tensor([[0.5, 0.0, 0.0, 1.5], [0.0, 0.0, 0.0, 2.5], [0.0, 0.0, 0.0, 0.0]])
    metrics = measured(x, x_hat, dense).result()
    # mean x = (1, 1); squared errors 1, 1, 0; squared distances from the mean 1, 2, 1.
    assert dataclasses.asdict(metrics) == {
        "l0": 1.0,
        "fvu": 0.5,
        "explained_variance": 0.5,
        "mse": pytest.approx(2 / 6),
        "cosine": pytest.approx((1 / math.sqrt(2) + 1 + 1) / 3),
        "dead_fraction": 0.5,
        "dense_fraction": 0.5,
        "n_tokens": 3,
    }


def test_identity_explains_everything_and_the_mean_nothing():
    x, _, dense = random_case(offset=5.0)
    assert measured(x, x.clone(), dense).result().fvu == 0.0
    mean = x.double().mean(0).expand_as(x)
    assert measured(x, mean, dense, cuts=(13, 14, 100)).result().fvu == pytest.approx(1.0, abs=1e-12)


def test_fvu_keeps_its_digits_when_the_mean_is_large():
    x, x_hat, dense = random_case(offset=0.0)
    # Multiples of 2^-8 with an offset of 2^14 are exact in float32, so both cases have the same true value.
    x, x_hat = (256 * x).round() / 256, (256 * x_hat).round() / 256
    near = measured(x, x_hat, dense, cuts=range(10, 200, 10)).result().fvu
    far = measured(x + 2**14, x_hat + 2**14, dense, cuts=range(10, 200, 10)).result().fvu
    assert far == pytest.approx(near, rel=1e-12)


def test_dense_and_dead_features_are_counted():
    dense = torch.zeros(100, 5)
    dense[:10, 0] = 1.0  # exactly 10 %: not dense
    dense[:11, 1] = 1.0  # dense
    dense[:, 2] = 1.0  # dense
    dense[7, 3] = 1.0
    metrics = measured(torch.randn(100, 2), torch.randn(100, 2), dense).result()
    assert metrics.dead_fraction == 1 / 5
    assert metrics.dense_fraction == 2 / 5
    assert metrics.l0 == pytest.approx((10 + 11 + 100 + 1) / 100)


def test_feature_statistics_of_the_same_stream():
    dense = torch.tensor([[0.0, 2.0, 0.0], [1.0, 4.0, 0.0]])
    features = measured(torch.randn(2, 2), torch.randn(2, 2), dense).features()
    assert features.density.tolist() == [0.5, 1.0, 0.0]
    assert features.mean_active.tolist() == [1.0, 3.0, 0.0]
    assert features.maximum.tolist() == [1.0, 4.0, 0.0]


def test_no_tokens_leave_everything_undefined():
    metrics = measured(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 4)).result()
    assert metrics == ReconstructionMetrics(
        l0=None,
        fvu=None,
        explained_variance=None,
        mse=None,
        cosine=None,
        dead_fraction=None,
        dense_fraction=None,
        n_tokens=0,
    )


@pytest.mark.parametrize("value", [0.1, 1e-3, 12345.678])
def test_constant_input_has_no_fvu_however_it_is_cut(value):
    x = torch.full((50, 3), value)
    metrics = measured(x, x + 1, torch.ones(50, 4), cuts=(3, 4, 30)).result()
    assert metrics.fvu is None and metrics.explained_variance is None
    assert metrics.mse == pytest.approx(1.0, rel=1e-2)


def test_zero_vectors_have_no_cosine_and_an_empty_answer_has_zero():
    x = torch.tensor([[0.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    nothing, dense = torch.zeros(3, 2), torch.zeros(3, 4)
    assert measured(x[:1], torch.ones(1, 2), dense[:1]).result().cosine is None
    assert measured(x, nothing, dense).result().cosine == 0.0
    assert measured(x, torch.tensor([[1.0, 1.0], [0.0, 1.0], [2.0, 0.0]]), dense).result().cosine == 1.0


def test_values_that_are_not_finite_make_no_number():
    x, x_hat, dense = random_case()
    x_hat[3, 2] = math.nan
    metrics = measured(x, x_hat, dense).result()
    assert metrics.fvu is None and metrics.mse is None and metrics.cosine is None
    assert metrics.l0 == pytest.approx((dense > 0).sum().item() / 200)


@pytest.mark.usefixtures("unchecked")
def test_shapes_that_do_not_fit_are_refused():
    accumulator = ReconstructionAccumulator(d_out=3, d_sae=4)
    with pytest.raises(ValueError, match="do not fit d_out 3"):
        accumulator.update(torch.zeros(2, 3), torch.zeros(2, 2), SparseCode.from_dense(torch.zeros(2, 4)))
    with pytest.raises(ValueError, match="a code of 3 rows"):
        accumulator.update(torch.zeros(2, 3), torch.zeros(2, 3), SparseCode.from_dense(torch.zeros(3, 4)))


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 200), max_size=12),
    offset=st.sampled_from([0.0, 1.0, 300.0]),
    seed=st.integers(0, 5),
)
def test_any_division_gives_the_dense_result(cuts, offset, seed):
    x, x_hat, dense = random_case(seed=seed, offset=offset)
    metrics = measured(x, x_hat, dense, cuts).result()
    target, output = x.double(), x_hat.double()
    error, spread = (target - output).square().sum(), (target - target.mean(0)).square().sum()
    expected = {
        "l0": (dense > 0).sum(1).double().mean(),
        "fvu": error / spread,
        "explained_variance": 1 - error / spread,
        "mse": (target - output).square().mean(),
        "cosine": torch.cosine_similarity(target, output).mean(),
        "dead_fraction": (dense == 0).all(0).double().mean(),
        "dense_fraction": ((dense > 0).double().mean(0) > 0.1).double().mean(),
        "n_tokens": 200,
    }
    for name, value in dataclasses.asdict(metrics).items():
        assert value == pytest.approx(float(expected[name]), rel=1e-11), name
