import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.activations import stream as stream_module
from saelab.activations.mixing import mixing_quality
from saelab.activations.order import RowOrder
from saelab.activations.store import Store
from saelab.activations.stream import StoreStream
from saelab.errors import DamagedFileError, UsageError

ROWS, D = 3000, 4


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A store whose row i holds i in its first place."""
    x = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(1))
    x[:, 0] = torch.arange(ROWS)
    return Store.from_tensors(
        tmp_path_factory.mktemp("numbered") / "s", x, heldout_share=0.2, dtype="float32"
    )


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 20 rows, so that a small store has many."""
    monkeypatch.setattr(stream_module, "BLOCK_BYTES", 20 * D * 4)


def take(store, n_batches, **options):
    settings = {"batch_size": 64, "seed": 0, "pool_rows": 500} | options
    with StoreStream(store, None, **settings) as stream:
        batches = [stream.next() for _ in range(n_batches)]
        assert stream.cursor == settings.get("cursor", 0) + n_batches * settings["batch_size"]
    return batches


def indices(batches):
    return torch.cat([batch.token_index for batch in batches])


def rows_of(store, split):
    return store.rows(None, split, 0, store.n_rows(None, split))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_row_of_the_split_comes_once_an_epoch(numbered, split):
    n = numbered.n_rows(None, split)
    seen = indices(take(numbered, 3 * n // 64 + 1, split=split))
    wanted = rows_of(numbered, split).token_index
    epochs = [seen[e * n : (e + 1) * n] for e in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, wanted)
    assert not torch.equal(epochs[0], epochs[1])


def test_no_heldout_row_is_in_the_training_stream(numbered):
    seen = set(indices(take(numbered, 100)).tolist())
    assert seen.isdisjoint(rows_of(numbered, "heldout").token_index.tolist())
    assert len(seen) == numbered.n_rows(None, "train")


def test_rows_come_with_their_token(numbered):
    for batch in take(numbered, 5):
        assert batch.x.dtype == torch.float32
        assert torch.equal(batch.x[:, 0], batch.token_index.float())
        assert batch.gradients is None


@pytest.mark.parametrize("pool_rows", [1, 500, 10**6])
def test_a_cursor_gives_what_skipping_its_rows_gives(numbered, pool_rows):
    n = numbered.n_rows(None, "train")
    whole = take(numbered, 2 * n // 64 + 3, pool_rows=pool_rows)
    for start in (1, 7, 8, n // 64, n // 64 + 1, 2 * n // 64):
        resumed = take(numbered, 3, pool_rows=pool_rows, cursor=start * 64)
        for found, expected in zip(resumed, whole[start : start + 3], strict=True):
            assert torch.equal(found.x, expected.x)
            assert torch.equal(found.token_index, expected.token_index)


def test_a_cursor_between_batches_and_another_batch_size_keep_the_order(numbered):
    n = numbered.n_rows(None, "train")
    flat = indices(take(numbered, 2 * n // 64 + 2))
    found = indices(take(numbered, 4, cursor=n - 130, batch_size=101))
    assert torch.equal(found, flat[n - 130 : n - 130 + 404])


def test_seeds_decide_the_order(numbered):
    one, same, other = (indices(take(numbered, 4, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_number_of_reading_threads_changes_nothing(numbered):
    one, many = (take(numbered, 40, read_threads=threads) for threads in (1, 8))
    assert torch.equal(torch.cat([b.x for b in one]), torch.cat([b.x for b in many]))


def test_batches_are_not_overwritten_by_later_ones(numbered):
    with StoreStream(numbered, None, batch_size=64, seed=0, pool_rows=100) as stream:
        first = stream.next()
        copy = first.x.clone()
        for _ in range(60):
            stream.next()
    assert torch.equal(first.x, copy)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 500), st.integers(0, 2**40), st.integers(0, 2))
def test_the_order_is_a_permutation_of_every_epoch(n_rows, block_rows, pool_rows, seed, epoch):
    order = RowOrder(n_rows, seed, block_rows, pool_rows)
    rows, sizes = [], []
    for number in range(epoch * order.pools_per_epoch, (epoch + 1) * order.pools_per_epoch):
        spans, permutation = order.pool(number)
        in_pool = [row for start, stop in spans for row in range(start, stop)]
        assert order.find(epoch * n_rows + len(rows)) == (number, 0)
        assert order.find(epoch * n_rows + len(rows) + len(in_pool) - 1) == (number, len(in_pool) - 1)
        assert permutation.sort().values.tolist() == list(range(len(in_pool)))
        rows += [in_pool[i] for i in permutation]
        sizes.append(len(spans))
    assert sorted(rows) == list(range(n_rows))
    assert max(sizes) - min(sizes) <= 1


def test_one_large_pool_mixes_like_a_full_shuffle_and_small_ones_do_not(numbered):
    def quality(pool_rows):
        with StoreStream(numbered, None, batch_size=100, seed=0, pool_rows=pool_rows) as stream:
            return mixing_quality(stream, 100)

    assert quality(10**6) == pytest.approx(1.0, abs=0.15)
    assert 1.0 < quality(1000) < 4.0
    assert quality(20) > 10


def test_unshuffled_rows_have_the_mixing_quality_that_follows_from_their_documents(numbered):
    class InOrder(StoreStream):
        """Gives consecutive rows: blocks of 7 rows are documents."""

        at = 0

        def next(self):
            index = self.store.rows(None, "train", self.at, self.at + 70).token_index
            self.at += 70
            return stream_module.Batch(x=torch.empty(70, 0), token_index=index, gradients=None)

    with InOrder(numbered, None, batch_size=70, seed=0) as stream:
        same_by_chance = 6 / (stream.n_rows - 1)
        found = mixing_quality(stream, 20) * same_by_chance
    assert 0.8 * 6 / 69 < found <= 6 / 69


def test_gradients_come_along_in_the_same_order(store):
    hook = store.hooks[0]
    n = store.n_rows(hook, "train")
    everything = store.rows(hook, "train", 0, n)
    place = {t: i for i, t in enumerate(everything.token_index.tolist())}
    with StoreStream(store, hook, batch_size=50, seed=3, pool_rows=90, with_gradients=True) as stream:
        with_gradients = [stream.next() for _ in range(20)]
    with StoreStream(store, hook, batch_size=50, seed=3, pool_rows=90) as stream:
        without = [stream.next() for _ in range(20)]
    for one, two in zip(with_gradients, without, strict=True):
        rows = [place[t] for t in one.token_index.tolist()]
        assert torch.equal(one.x, everything.x[rows])
        assert torch.equal(one.gradients, everything.gradients[rows])
        assert torch.equal(one.x, two.x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": ROWS}, f"batch size is {ROWS:,}, it can be at most 2,"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"cursor": -1}, "cursor is -1"),
        ({"pool_rows": 0}, "pool_rows is 0"),
        ({"read_threads": 0}, "read_threads is 0"),
        ({"with_gradients": True}, "no gradients"),
    ],
)
def test_impossible_streams_are_refused(numbered, options, message):
    with pytest.raises(UsageError, match=message):
        StoreStream(numbered, None, **({"batch_size": 8, "seed": 0} | options))


def test_a_damaged_shard_reaches_the_reader_of_the_stream(tmp_path):
    store = Store.from_tensors(tmp_path / "s", torch.randn(500, D), dtype="float32")
    (shard,) = (tmp_path / "s").rglob("shard-*")
    shard.write_bytes(shard.read_bytes()[:-10])
    with (
        StoreStream(store, None, batch_size=8, seed=0) as stream,
        pytest.raises(DamagedFileError, match="make the store again"),
    ):
        stream.next()
