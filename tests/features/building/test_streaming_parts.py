"""The pieces of the streaming build against closed forms and brute force."""

from itertools import pairwise

import numpy as np
import pytest

from saelab.features.building.corpus import Corpus
from saelab.features.building.numbers import bin_of, equal_edges, log_histogram
from saelab.features.streaming import smallest
from saelab.features.streaming.histograms import Histograms
from saelab.features.streaming.smallest import Entries, Smallest
from saelab.features.streaming.state import load, save
from saelab.features.streaming.sums import Sums
from saelab.features.streaming.survey import weakness


class Hundreds(Corpus):
    """Rows of 100 tokens, all of them kept."""

    def __init__(self):
        self.row_starts = np.arange(0, 100_001, 100)
        self._kept_ends = self.row_starts[1:]

    def activations(self, stretch):
        raise AssertionError("nothing is encoded here")


def batch(first, values):
    from torch import from_numpy

    from saelab.features.streaming.batches import batch_of
    from saelab_kernels.code import SparseCode

    tokens = np.arange(first, first + len(values))
    rows, columns = np.nonzero(values)
    offsets = np.append(0, np.cumsum((values > 0).sum(1)))
    code = SparseCode(
        from_numpy(values[rows, columns]),
        from_numpy(columns.astype(np.int32)),
        values.shape[1],
        from_numpy(offsets),
    )
    return batch_of(first, tokens, code)


def test_merged_sums_are_those_of_all_values():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=(2000, 5)).astype(np.float32)
    values[rng.random(values.shape) < 0.7] = 0
    values[:, 1] = np.where(
        values[:, 1] > 0, 1000 + values[:, 1], 0
    )  # a mean that is large beside the spread
    values[:, 2] = np.where(values[:, 2] > 0, np.float32(0.1), 0)  # no spread at all
    values[:, 3] = 0
    values[:, 4] = 0
    values[1234, 4] = 3
    sums = Sums(Hundreds(), 5)
    cuts = [0, 100, 300, 400, 1100, 1200, 2000]
    for first, last in pairwise(cuts):
        one = batch(first, values[first:last])
        sums.add(one, one.positions // 100)
    for feature in (0, 1):
        active = values[values[:, feature] > 0, feature].astype(np.float64)
        found = sums.moments(feature)
        assert found.mean == pytest.approx(active.mean(), rel=1e-12)
        assert found.std == pytest.approx(active.std(), rel=1e-9)
        z = (active - active.mean()) / active.std()
        assert found.skew == pytest.approx((z**3).mean(), rel=1e-7)
        assert found.kurtosis == pytest.approx((z**4).mean() - 3, rel=1e-7)
    assert sums.moments(2).mean == pytest.approx(0.1, rel=1e-7)
    assert sums.moments(2).skew is None and sums.moments(4).kurtosis is None
    active = values > 0
    positions = np.arange(2000)
    assert sums.counts.tolist() == active.sum(0).tolist()
    assert sums.maxima.tolist() == values.max(0).tolist()
    assert sums.mass == pytest.approx(values.sum(0, dtype=np.float64), rel=1e-12)
    assert sums.first_mass == pytest.approx(values[::100].sum(0, dtype=np.float64), rel=1e-12)
    for feature in range(5):
        where = positions[active[:, feature]]
        assert sums.n_documents[feature] == len(np.unique(where // 100))
        assert sums.places[feature].tolist() == np.bincount(where % 100 * 16 // 100, minlength=16).tolist()
        assert sums.log_histogram[feature].tolist() == log_histogram(values[where, feature])


def test_a_document_that_goes_on_in_the_next_batch_counts_once():
    sums = Sums(Hundreds(), 1)
    ones = np.ones((50, 1), dtype=np.float32)
    for first, document in ((0, 0), (50, 0), (100, 0), (150, 1), (200, 1)):
        sums.add(batch(first, ones), np.full(50, document))
    assert sums.n_documents.tolist() == [2]


@pytest.mark.parametrize("buffer", [0, 3000, 2**26])
def test_the_smallest_of_each_group(buffer, monkeypatch, tmp_path):
    monkeypatch.setattr(smallest, "BUFFER", buffer)
    monkeypatch.setattr(smallest, "SHARE", 0.0)
    rng = np.random.default_rng(1)
    n, groups = 3000, 7
    owner, keys = rng.integers(0, groups - 1, n), rng.integers(0, 500, n).astype(np.uint64)
    positions, values = np.arange(n), rng.random(n).astype(np.float32)
    sizes = rng.integers(0, 4, n)
    starts = np.append(0, np.cumsum(sizes))
    offsets, around = rng.integers(-9, 9, starts[-1]), rng.random(starts[-1]).astype(np.float32)
    pool = Smallest(groups, 5, 4, alike=lambda positions: positions // 3)
    for number, part in enumerate(np.array_split(np.arange(n), 60)):
        which = part[pool.wanted(owner[part], keys[part])]
        inside = smallest.spread(starts[which], sizes[which])
        bare = Entries.bare(owner[which], keys[which], positions[which], values[which])
        pool.add(smallest.with_windows(bare, sizes[which], offsets[inside], around[inside]))
        if number == 30:  # what is saved and read goes on as if nothing had been
            save(tmp_path / "state", {"pool": pool}, 7)
            pool = Smallest(groups, 5, 4, alike=lambda positions: positions // 3)
            assert load(tmp_path / "state", {"pool": pool}) == 7
    found = pool.result()
    place = 0
    for group in range(groups):
        seen, wanted = set(), []
        for i in sorted(np.flatnonzero(owner == group), key=lambda i: (keys[i], i)):
            if positions[i] // 3 not in seen:
                seen.add(positions[i] // 3)
                wanted.append(i)
        for i in wanted[:5]:
            entry = found.take(np.array([place]))
            assert (entry.groups[0], entry.keys[0], entry.positions[0]) == (group, keys[i], positions[i])
            assert entry.offsets.tolist() == offsets[starts[i] : starts[i + 1]].tolist()
            assert entry.activations.tolist() == around[starts[i] : starts[i + 1]].tolist()
            place += 1
    assert place == len(found)


def test_bins_are_those_of_the_edges():
    rng = np.random.default_rng(2)
    maxima = np.array([1.0, 0.3, 1e-44, 7e30, 0.0], dtype=np.float32)
    histograms = Histograms(maxima, 40)
    for feature, maximum in enumerate(maxima[:4]):
        edges = equal_edges(float(maximum), 40)
        near = np.concatenate([edges[1:], np.nextafter(edges[1:], 0), np.nextafter(edges[:-1], maximum)])
        values = np.concatenate([near, rng.random(500).astype(np.float32) * maximum])
        values = values[(values > 0) & (values <= maximum)].astype(np.float32)
        bins = histograms.add(np.full(len(values), feature), values)
        wanted = bin_of(values, edges)
        assert bins.tolist() == wanted.tolist()
        assert histograms.counts[feature].tolist() == np.bincount(wanted, minlength=40).tolist()


def test_larger_values_are_less_weak():
    values = np.sort(np.random.default_rng(3).exponential(size=500).astype(np.float32))
    values = np.concatenate([np.array([1e-45, 1e-38], dtype=np.float32), values[values > 1e-37]])
    assert (np.diff(weakness(values).astype(np.int64)) <= 0).all()
    assert (np.diff(weakness(np.unique(values)).astype(np.int64)) < 0).all()
