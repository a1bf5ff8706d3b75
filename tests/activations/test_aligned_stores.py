"""Several stores as one source: rows of one token side by side, whatever the widths; stores of other tokens refused."""

import pytest
import torch
from activation_helpers import RESID_0, RESID_1

from saelab.activations import stream as stream_module
from saelab.activations.aligned import AlignedSource, joint_identity, open_stores, source_of
from saelab.activations.live import LiveSource
from saelab.activations.own import OwnBatch
from saelab.activations.source import Order, StoreSource
from saelab.activations.spec import LiveConfig
from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.lm.identity import ModelIdentity

ROWS, NARROW, WIDE = 800, 3, 17
MLP_0 = "model.layers.0.mlp.down_proj.input"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 113 rows of the narrow hookpoint, and of 20 of the wide one."""
    monkeypatch.setattr(stream_module, "BLOCK_BYTES", 20 * WIDE * 4)


def numbered(folder, widths, rows=ROWS, example_rows=10):
    """A store whose row i holds i in its first place, at every hookpoint."""
    x = {
        name: torch.randn(rows, width, generator=torch.Generator().manual_seed(width))
        for name, width in widths.items()
    }
    for values in x.values():
        values[:, 0] = torch.arange(rows)
    batch = OwnBatch(x, torch.arange(rows) // example_rows)
    return Store.from_batches(folder, [batch], heldout_share=0.2, dtype="float32")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return numbered(tmp_path_factory.mktemp("aligned") / "narrow", {"a": NARROW, "wide": WIDE})


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return numbered(tmp_path_factory.mktemp("aligned") / "other", {"a": NARROW + 2})


def order(source, batch=64, pool_rows=300):
    return Order(batch=batch, seed=1, pool_rows=pool_rows, total_rows=10**6)


def take(source, hooks, n_batches, position=None):
    opened = source.open(hooks, order(source), position)
    try:
        return [opened.next() for _ in range(n_batches)], opened.position()
    finally:
        opened.close()


def assert_same_tokens(batches, hooks):
    for batch in batches:
        first = batch[hooks[0]]
        for hook in hooks:
            assert torch.equal(batch[hook].token_index, first.token_index)
            assert torch.equal(batch[hook].x[:, 0], first.token_index.float())


def test_hookpoints_of_different_widths_in_one_store_come_in_one_order(narrow):
    source = StoreSource(narrow)
    together, _ = take(source, ["a", "wide"], 20)
    assert_same_tokens(together, ["a", "wide"])
    alone, _ = take(source, ["a"], 20)
    for one, both in zip(alone, together, strict=True):
        assert torch.equal(one["a"].token_index, both["a"].token_index)


def test_stores_of_different_widths_come_in_one_order_over_epochs(narrow, other):
    source = AlignedSource([narrow, other])
    hooks = ["a", "2:a", "wide"]
    batches, position = take(source, hooks, 24)
    assert_same_tokens(batches, hooks)
    seen = torch.cat([batch["2:a"].token_index for batch in batches])
    n = narrow.n_rows("a", "train")
    assert len(seen) > 2 * n
    assert len(seen[:n].unique()) == n
    resumed, _ = take(source, hooks, 3, position)
    straight, _ = take(source, hooks, 27)
    for found, expected in zip(resumed, straight[24:], strict=True):
        for hook in hooks:
            assert torch.equal(found[hook].x, expected[hook].x)


def test_the_first_store_comes_as_it_does_alone_where_it_is_the_widest(narrow, other):
    alone, _ = take(StoreSource(narrow), ["a"], 20)
    aligned, _ = take(AlignedSource([narrow, other]), ["2:a"], 20)
    for one, both in zip(alone, aligned, strict=True):
        assert torch.equal(one["a"].token_index, both["2:a"].token_index)


def test_a_live_stream_gives_hookpoints_of_different_widths_in_one_order(lm, make_config):
    cached = make_config(at=(RESID_0, MLP_0), dtype="float32")
    common = {
        name: getattr(cached, name) for name in ("model", "text", "at", "context", "batch_rows", "dtype")
    }
    source = LiveSource(LiveConfig(**common, pool_rows=200), lm)
    wide_hook, narrow_hook = (hook.module_path for hook in source.hooks)
    assert source.hook(narrow_hook).d_in < source.hook(wide_hook).d_in
    settings = order(source, batch=50, pool_rows=200)
    seen = {}
    for hooks in ((narrow_hook, wide_hook), (narrow_hook,)):  # one after the other: they run the same model
        opened = source.open(hooks, settings, None)
        seen[hooks] = [opened.next() for _ in range(12)]
        opened.close()
    for both, one in zip(*seen.values(), strict=True):
        assert torch.equal(both[narrow_hook].token_index, both[wide_hook].token_index)
        assert torch.equal(both[narrow_hook].document, both[wide_hook].document)
        assert torch.equal(both[narrow_hook].x, one[narrow_hook].x)


def test_hookpoints_of_further_stores_are_numbered_in_both_spellings(store, make_store, tmp_path):
    second = make_store(tmp_path / "second", at=(RESID_1,), dtype="float32")
    source = AlignedSource([store, second])
    paths = [hook.module_path for hook in source.hooks]
    assert paths == [*(hook.module_path for hook in store.hooks), f"2:{second.hooks[0].module_path}"]
    found = source.hook(f"2:{RESID_1}")
    assert found.module_path == paths[-1]
    assert [hook.has_gradients for hook in source.hooks] == [True, True, False]
    torch.testing.assert_close(source.statistics(paths[-1]).mean, source.statistics(paths[1]).mean)
    with pytest.raises(UsageError, match=f"no hookpoint '3:{RESID_1}'; it has .*2:{RESID_1}"):
        source.hook(f"3:{RESID_1}")
    hooks = [RESID_1, f"2:{RESID_1}"]
    tiles = list(source.spread_rows([source.hook(name).module_path for name in hooks], 300))
    for tile in tiles:
        first, numbered_one = tile.values()
        assert torch.equal(first, numbered_one)


def test_spread_rows_of_two_stores_are_about_the_same_tokens(narrow, other):
    tiles = list(AlignedSource([narrow, other]).spread_rows(["wide", "2:a"], 10**6))
    assert sum(len(tile["wide"]) for tile in tiles) == narrow.n_rows("a", "train")
    for tile in tiles:
        assert torch.equal(tile["wide"][:, 0], tile["2:a"][:, 0])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"tokens": 500}, "the tokens, the rows of tokens, which tokens are kept"),
        ({"mask_first_positions": 3, "tokens": 500}, "which tokens are kept"),
    ],
)
def test_stores_of_other_tokens_are_refused_in_one_sentence(store, make_store, tmp_path, options, what):
    second = make_store(tmp_path / "second", **options)
    with pytest.raises(UsageError, match=f"are not token-aligned: they differ in .*{what}.*; cache both"):
        AlignedSource([store, second])


def test_another_split_of_the_same_tokens_is_refused(narrow, tmp_path):
    second = numbered(tmp_path / "second", {"a": NARROW}, example_rows=50)
    with pytest.raises(UsageError, match="they differ in the documents or which of them are held out;"):
        source_of([narrow, second])


def test_one_store_is_no_aligned_source_and_two_have_an_identity_of_their_own(narrow, other):
    assert isinstance(open_stores([narrow.path]), StoreSource)
    both = open_stores([narrow.path, other.path])
    assert both.identity == AlignedSource([narrow, other]).identity
    assert both.identity != AlignedSource([other, narrow]).identity
    assert both.identity not in (narrow.identity, other.identity)
    assert both.pool_bytes(["a", "2:a"], 100) == 2 * 100 * 4 * (NARROW + NARROW + 2)
    assert both.default_pool_rows("a") == StoreSource(narrow).default_pool_rows("wide")


def model(name, digest):
    return ModelIdentity(
        hash=digest,
        name=name,
        revision="main",
        dtype="float32",
        attention="sdpa",
        tokenizer_hash="t",
        adapter=None,
    )


def test_two_models_are_together_a_third_thing_and_one_model_stays_itself():
    base, tuned = model("base", "1"), model("tuned", "2")
    assert joint_identity([base, base]) == base
    assert joint_identity([None, None]) is None
    both, reverse = joint_identity([base, tuned]), joint_identity([tuned, base])
    assert both is not None
    assert reverse is not None
    assert len({both.hash, reverse.hash, base.hash, tuned.hash}) == 4
    assert (both.name, both.tokenizer_hash, both.dtype) == ("base + tuned", "t", "float32")
    mixed = joint_identity([base, None])
    assert mixed is not None
    assert mixed.name == "base + activations without a model"
