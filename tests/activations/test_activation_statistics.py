import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.activations.statistics import HookStatistics, StatisticsAccumulator
from saelab.errors import DamagedFileError


def gathered(*pieces):
    accumulator = StatisticsAccumulator(pieces[0].shape[1])
    for piece in pieces:
        accumulator.add(piece)
    return accumulator.finish()


def test_hand_made_rows_have_the_known_statistics():
    found = gathered(torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]))
    assert found.mean.tolist() == [3.0, 4.0]
    assert found.mean.dtype == torch.float64
    assert found.mean_square_norm == pytest.approx(125 / 3)
    assert found.variance == pytest.approx(50 / 3)
    assert found.median_norm == pytest.approx(5.0, rel=3e-4)
    assert found.max_norm == 10.0
    assert found.outlier_ratio == pytest.approx(2.0, rel=3e-4)
    assert found.n_rows == 3


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.lists(st.integers(1, 40), min_size=1, max_size=5), st.sampled_from([0.0, 1e6])
)
def test_pieces_merge_to_the_statistics_of_the_whole(seed, sizes, offset):
    generator = torch.Generator().manual_seed(seed)
    pieces = [torch.randn(n, 3, generator=generator, dtype=torch.float64) + offset for n in sizes]
    found, x = gathered(*pieces), torch.cat(pieces).numpy()
    norms = np.linalg.norm(x, axis=1)
    assert np.allclose(found.mean.numpy(), x.mean(0), rtol=1e-12)
    assert found.variance == pytest.approx(((x - x.mean(0)) ** 2).sum(1).mean(), rel=1e-9)
    assert found.mean_square_norm == pytest.approx((norms**2).mean(), rel=1e-12)
    assert found.max_norm == pytest.approx(norms.max(), rel=1e-12)
    assert found.median_norm == pytest.approx(np.sort(norms)[(len(norms) - 1) // 2], rel=3e-4)


def test_the_result_is_the_same_bits_whatever_the_threads():
    x = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(gathered(x))
    torch.set_num_threads(before)
    assert found[0].scalars() == found[1].scalars()
    assert torch.equal(found[0].mean, found[1].mean)


def test_zero_rows_have_no_outlier_ratio():
    found = gathered(torch.zeros(5, 2))
    assert (found.median_norm, found.variance, found.outlier_ratio) == (0.0, 0.0, None)


def test_scalars_and_mean_make_the_statistics_again():
    found = gathered(torch.randn(9, 2))
    again = HookStatistics.from_parts(found.scalars(), found.mean)
    assert again.scalars() == found.scalars()


@pytest.mark.parametrize("scalars", [None, {}, {"mean_square_norm": "x"}])
def test_damaged_scalars_are_refused(scalars):
    with pytest.raises(DamagedFileError):
        HookStatistics.from_parts(scalars, torch.zeros(2))


def test_a_stores_statistics_are_those_of_its_training_rows(store):
    for hook in store.hooks:
        x = store.rows(hook, "train", 0, store.n_rows(hook, "train")).x.double()
        found = store.statistics(hook)
        assert found.n_rows == len(x)
        assert torch.allclose(found.mean, x.mean(0), rtol=1e-12)
        assert found.variance == pytest.approx(float((x - x.mean(0)).pow(2).sum(1).mean()))
        assert found.max_norm == pytest.approx(float(x.norm(dim=1).max()))
