"""Live streams: the same rows as a store, resumed exactly, mixed as a pool mixes."""

import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from activation_helpers import RESID_0, RESID_1, all_rows

from saelab.activations import live_pool
from saelab.activations.live import LiveSource
from saelab.activations.live_pool import PoolMaker, PoolStart
from saelab.activations.source import Order, StoreSource
from saelab.activations.spec import CacheConfig, LiveConfig
from saelab.api import train_config
from saelab.errors import Interrupted, SaelabError, UsageError
from saelab.interrupts import StopRequest
from saelab.training.passes import HowToTrain
from saelab.training.run import Run
from saelab.training.single import train_run

BATCH = 32


@pytest.fixture
def make_live(lm, make_config):
    """Return a maker of live sources; options override the small defaults of the store's configuration."""

    def make(**options):
        shared = {
            name: getattr(make_config(), name) for name in ("model", "text", "at", "context", "batch_rows")
        }
        return LiveSource(LiveConfig(**(shared | {"pool_rows": 200} | options)), lm)

    return make


def order(source, total_rows=10**9, seed=3):
    return Order(batch=BATCH, seed=seed, pool_rows=source.config.pool_rows, total_rows=total_rows)


def take(source, n, position=None, **options):
    """Some batches of a source's first hookpoint, and the positions before each."""
    hook = source.hooks[0].module_path
    stream = source.open([hook], order(source, **options), position)
    try:
        return [(stream.position(), stream.next()[hook]) for _ in range(n)]
    finally:
        stream.close()


def equal(a, b):
    return torch.equal(a.x, b.x) and torch.equal(a.token_index, b.token_index)


def whole_text(make_config, **options):
    """A text without held-out documents: there packing is the same with and without a pool."""
    text = replace(make_config().text, heldout_share=0.0)
    return {"text": text, "tokens": 10**6, "shard_rows": 10**6} | options


def test_a_text_that_fits_into_one_pool_gives_the_batches_of_its_store(
    make_live, make_store, make_config, tmp_path
):
    store = make_store(tmp_path / "store", **whole_text(make_config))
    live = make_live(text=store_text(make_config), pool_rows=10**5)
    hook = live.hooks[0].module_path
    cached = StoreSource(store).open([hook], order(live), None)
    n_batches = 2 * store.n_rows(hook, "train") // BATCH + 3
    for _, batch in take(live, n_batches):
        assert equal(batch, cached.next()[hook])
    cached.close()


def store_text(make_config):
    return replace(make_config().text, heldout_share=0.0)


def test_an_sae_trained_live_equals_one_trained_on_the_store_of_the_same_tokens(
    make_live, make_store, make_config, tmp_path
):
    store = make_store(tmp_path / "store", **whole_text(make_config))
    live = make_live(text=store_text(make_config), pool_rows=10**5)
    results = {}
    for name, source in {"live": live, "store": StoreSource(store)}.items():
        config = train_config(
            source, "topk", recipe_options={"k": 4}, width=24, tokens=40 * BATCH, batch=BATCH, log_every=4
        )
        config = replace(config, pool_rows=10**5)
        run = train_run(config, source, tmp_path / f"{name}-run", HowToTrain(quiet=True))
        results[name] = run
    for part in ("sae/weights.safetensors", "sae/feature_stats.safetensors", "metrics.jsonl"):
        live_bytes, store_bytes = ((results[n].path / part).read_bytes() for n in ("live", "store"))
        assert live_bytes == store_bytes, part
    assert results["live"].live == live.config
    assert results["live"].store_path is None
    means = [results[name].activation_statistics().mean for name in ("live", "store")]
    assert torch.equal(*means)


def test_only_training_documents_are_read_and_each_once_a_pass(make_live, lm, make_config):
    live = make_live()
    pools = [live._maker.make(PoolStart())]
    while pools[-1].after.epoch == 0 and len(pools) < 50:
        pools.append(live._maker.make(pools[-1].after))
        if pools[-1].start.epoch:
            break
    *first_pass, again = pools
    assert again.start == PoolStart(epoch=1)
    assert equal_pools(again, pools[0])
    from saelab.text.load import load_documents

    expected = [n for n, d in enumerate(load_documents(live.config.text)) if d.split == "train"]
    seen = [sorted(set(pool.document.tolist())) for pool in first_pass]
    assert [n for numbers in seen for n in numbers] == expected
    assert all(pool.n_rows >= 200 for pool in first_pass[:-1])


def equal_pools(a, b):
    return torch.equal(a.token_index, b.token_index) and all(torch.equal(a.x[h], b.x[h]) for h in a.x)


@pytest.mark.parametrize("at", [0, 1, 6, 7, 13, 30])
def test_a_stream_is_resumed_exactly_anywhere_also_by_a_new_process(make_live, at):
    straight = take(make_live(), 34)
    position = json.loads(json.dumps(straight[at][0]))
    again = take(make_live(), 34 - at, position)
    assert [p for p, _ in again] == [p for p, _ in straight[at:]]
    assert all(equal(a, b) for (_, a), (_, b) in zip(again, straight[at:], strict=True))


def test_every_row_of_a_pass_comes_once(make_live, make_config):
    live = make_live()
    hook = live.hooks[0].module_path
    pools = [live._maker.make(PoolStart())]
    while pools[-1].after.document < 40 and pools[-1].start.epoch == 0:
        pools.append(live._maker.make(pools[-1].after))
    rows = torch.cat([pool.x[hook] for pool in pools if pool.start.epoch == 0]).float()
    batches = take(live, len(rows) // BATCH)
    seen = torch.cat([batch.x for _, batch in batches])
    count = Counter(map(tuple, rows.tolist()))
    count.subtract(map(tuple, seen.tolist()))
    assert min(count.values()) >= 0
    assert sum(count.values()) == len(rows) - len(seen)


def test_another_seed_gives_another_order_of_the_same_pool(make_live):
    first, second = take(make_live(), 6, seed=3), take(make_live(), 6, seed=4)
    assert not equal(first[0][1], second[0][1])


def test_two_hookpoints_are_read_in_one_pass_as_each_alone(make_live):
    both = make_live(at=(RESID_0, RESID_1))
    hooks = [hook.module_path for hook in both.hooks]
    stream = both.open(hooks, order(both), None)
    found = [stream.next() for _ in range(12)]
    stream.close()
    for name, hook in zip((RESID_0, RESID_1), hooks, strict=True):
        for (_, expected), batches in zip(take(make_live(at=(name,)), 12), found, strict=True):
            assert equal(expected, batches[hook])


def test_the_identity_names_what_decides_the_rows(make_live, make_config):
    base = make_live().identity
    assert make_live().identity == base
    assert make_live(at=(RESID_0, RESID_1)).identity == base, "which places are read changes no row"
    for change in (
        {"context": 12},
        {"pool_rows": 201},
        {"batch_rows": 2},
        {"packing": "document"},
        {"dtype": "float32"},
        {"text": replace(make_config().text, heldout_share=0.5)},
    ):
        assert make_live(**change).identity != base, change


def test_documents_are_mixed_as_a_pool_mixes(make_live):
    """Pairs of rows from one document: as many in a batch as in a random draw from its pool."""
    live = make_live()
    pool = live.first_pool
    counts = np.unique(pool.document.numpy(), return_counts=True)[1]
    expected = (counts * (counts - 1)).sum() / (pool.n_rows * (pool.n_rows - 1))
    found, n = 0.0, 0
    for seed in range(60):
        for _, batch in take(live, pool.n_rows // BATCH, seed=seed, total_rows=1):
            in_batch = np.unique(batch.document.numpy(), return_counts=True)[1]
            found += (in_batch * (in_batch - 1)).sum() / (BATCH * (BATCH - 1))
            n += 1
    assert found / n == pytest.approx(expected, rel=0.1)


def test_nothing_is_read_ahead_beyond_what_is_wanted(make_live, monkeypatch):
    live = make_live()
    made = []
    real = PoolMaker.make
    monkeypatch.setattr(
        PoolMaker, "make", lambda self, start, *rest: made.append(start) or real(self, start, *rest)
    )
    first = live.first_pool
    take(live, first.n_rows // BATCH, total_rows=first.n_rows)
    assert made == [PoolStart()]
    take(live, 1, total_rows=first.n_rows + 1)
    assert made[-1] == first.after


def test_a_live_run_that_is_stopped_and_resumed_ends_with_the_same_bits(make_live, tmp_path):
    class StopAt(StopRequest):
        looks = 0

        @property
        def requested(self):
            self.looks += 1
            return self.looks == 19

    def config(source):
        return train_config(
            source, "topk", recipe_options={"k": 4}, width=24, tokens=40 * BATCH, batch=BATCH, log_every=4
        )

    straight = make_live()
    train_run(config(straight), straight, tmp_path / "straight", HowToTrain(quiet=True))
    first = make_live()
    with pytest.raises(Interrupted, match=r"after step \d+ of 40"):
        train_run(config(first), first, tmp_path / "run", HowToTrain(quiet=True, stop=StopAt()))
    second = make_live()
    run = train_run(config(second), second, tmp_path / "run", HowToTrain(quiet=True))
    for part in ("sae/weights.safetensors", "sae/feature_stats.safetensors", "metrics.jsonl"):
        assert (run.path / part).read_bytes() == (tmp_path / "straight" / part).read_bytes(), part
    assert Run.open(run.path).live == straight.config


def test_documents_of_which_no_token_is_kept_are_passed_over(make_live, make_config, tmp_path):
    """A pool without a row is no pool: the next one is made, or the next pass over the text begins."""
    path = tmp_path / "text.jsonl"
    texts = ["some words of a small language " * 3] * 6 + ["a"] * 5
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    text = replace(make_config().text, source=str(path), heldout_share=0.0)
    live = make_live(text=text, packing="document", mask_first_positions=8, pool_rows=25)
    pools = [live._maker.make(PoolStart())]
    while len(pools) < 8:
        pools.append(live._maker.make(pools[-1].after))
    assert all(pool.n_rows for pool in pools)
    assert pools[-1].start.epoch >= 1
    path.write_text("".join(json.dumps({"text": "a"}) + "\n" for _ in range(9)))
    nothing = make_live(text=text, packing="document", mask_first_positions=8, pool_rows=25)
    with pytest.raises(SaelabError, match="no training document with tokens that are kept"):
        nothing.statistics(RESID_0)


def test_a_document_far_larger_than_a_pool_is_refused_by_number(make_live, monkeypatch):
    monkeypatch.setattr(live_pool, "LONGEST_EXCESS", 10)
    with pytest.raises(
        SaelabError, match=r"document \d+ is so long that a pool of 5 rows would hold \d+; cut it"
    ):
        make_live(pool_rows=5).statistics(RESID_0)


def test_places_are_part_of_the_identity_where_an_outlier_at_any_of_them_is_left_out(make_live):
    one = make_live(mask_norm_ratio=1.2)
    both = make_live(mask_norm_ratio=1.2, at=(RESID_0, RESID_1))
    assert one.first_pool.n_rows != both.first_pool.n_rows
    assert one.identity != both.identity
    with pytest.raises(UsageError, match="it must be a number above 1"):
        make_live(mask_norm_ratio=float("inf"))


def test_a_text_without_training_documents_is_refused(make_live, make_config):
    live = make_live(text=replace(make_config().text, heldout_share=1.0))
    with pytest.raises(SaelabError, match="has no training document with tokens"):
        live.statistics(RESID_0)


def test_a_pool_of_another_size_than_the_training_expects_is_refused(make_live):
    live = make_live()
    wrong = replace(order(live), pool_rows=100)
    with pytest.raises(UsageError, match="pool_rows is 100 in the training and 200 in the stream"):
        live.open([live.hooks[0].module_path], wrong, None)


def test_gradients_come_with_the_rows_that_they_belong_to(make_live, make_store, make_config, tmp_path):
    live = make_live(gradients=True, dtype="float32", text=store_text(make_config), pool_rows=10**5)
    store = make_store(tmp_path / "store", **whole_text(make_config, gradients=True, dtype="float32"))
    rows = all_rows(store, RESID_0)
    for _, batch in take(live, 5):
        place = torch.searchsorted(rows.token_index, batch.token_index)
        assert torch.equal(rows.gradients[place], batch.gradients)
        assert torch.equal(rows.x[place], batch.x)


def test_the_configuration_of_a_live_stream_is_read_strictly(make_live):
    from saelab.activations.spec import live_config_from_json
    from saelab.errors import DamagedFileError

    live = make_live()
    raw = json.loads(json.dumps(asdict(live.config)))
    assert live_config_from_json(raw, "here") == live.config
    for wrong in ({"pool_rows": 0}, {"pool_rows": "many"}, {"extra": 1}, {"model": {}}):
        with pytest.raises(DamagedFileError):
            live_config_from_json(raw | wrong, "here")
    assert not isinstance(live.config, CacheConfig)
