from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from activation_helpers import RESID_0, RESID_1, all_rows

from saelab.errors import SaelabError
from saelab.lm.run import edited
from saelab.text.packing import predictions_that_count


@pytest.mark.parametrize("mode", ["packed", "document"])
@pytest.mark.parametrize("masks", [{}, {"mask_bos": False}, {"mask_first_positions": 3}])
def test_masked_tokens_have_no_rows(make_store, tmp_path, mode, masks):
    store = make_store(tmp_path / "s", packing=mode, tokens=300, **masks)
    position = np.arange(len(store.tokens)) - np.repeat(store.row_starts[:-1], np.diff(store.row_starts))
    is_bos = store.tokens == store.sequences.bos_token_id
    assert not store.keep[position < masks.get("mask_first_positions", 0)].any()
    assert store.keep[is_bos].any() == (not masks.get("mask_bos", True))
    assert not store.keep[store.row_starts[1:] - 1].any()
    if mode == "document":
        assert set(store.row_starts[:-1]) >= set(store.documents["start"].to_pylist())


@contextmanager
def planted(lm, token, scale):
    """While active, one token's activations at block 0 are larger by a factor."""
    hookpoint = next(h for h in lm.hookpoints if h.alias == RESID_0)
    ids = []

    def grow(x):
        return torch.where((ids[-1] == token)[..., None], x * scale, x)

    handle = lm.hf.get_input_embeddings().register_forward_pre_hook(lambda _m, args: ids.append(args[0]))
    try:
        with edited(lm, {hookpoint: grow}):
            yield
    finally:
        handle.remove()


def common_token(store):
    values, counts = np.unique(store.tokens[store.keep], return_counts=True)
    return int(values[counts.argsort()[len(counts) // 4]])


@pytest.mark.parametrize("ratio", [None, 20.0])
def test_norm_outliers_are_reported_and_masked_when_asked(lm, make_store, tmp_path, ratio):
    plain = make_store(tmp_path / "plain", at=(RESID_0, RESID_1), dtype="float32")
    token = common_token(plain)
    is_planted = plain.keep & (plain.tokens == token)
    with planted(lm, token, 1000.0):
        store = make_store(
            tmp_path / "s", at=(RESID_0, RESID_1), dtype="float32", mask_norm_ratio=ratio, loss=True
        )
    assert 0 < is_planted.sum() < 60
    outlier_ratio = store.statistics(RESID_0).outlier_ratio
    if ratio is None:
        assert outlier_ratio > 300
        assert np.array_equal(store.keep, plain.keep)
        assert store.notes == ()
    else:
        assert outlier_ratio < 20
        assert np.array_equal(store.keep, plain.keep & ~is_planted)
        assert store.notes == (f"{is_planted.sum()} tokens were left out because of their norm",)
        assert store.manifest.content["provenance"]["masked_by_norm"] == is_planted.sum()
        assert store.hook(RESID_1).n_rows == 600 - is_planted.sum()


def test_gradients_count_no_prediction_from_a_token_masked_by_norm(lm, make_store, tmp_path):
    first = make_store(tmp_path / "plain", dtype="float32")
    token = common_token(first)
    with planted(lm, token, 1000.0):
        store = make_store(tmp_path / "s", dtype="float32", mask_norm_ratio=20.0, gradients=True)
        counts = predictions_that_count(store.sequences)
        row = int(np.searchsorted(store.row_starts, np.flatnonzero(store.tokens == token)[0], "right")) - 1
        start, stop = store.row_starts[row : row + 2]
        ids = torch.from_numpy(store.tokens[start:stop].astype(np.int64))
        seen = []
        grab = lm.hf.model.layers[0].register_forward_hook(
            lambda _m, _i, out: seen.append(out.requires_grad_())
        )
        logits = lm.hf(input_ids=ids[None], use_cache=False).logits[0, :-1]
        grab.remove()
        losses = F.cross_entropy(logits, ids[1:], reduction="none")
        (gradient,) = torch.autograd.grad((losses * torch.from_numpy(counts[start : stop - 1])).sum(), seen)
    split = store.split_of_token(int(start))
    rows = all_rows(store, None, split)
    chosen = (rows.token_index >= int(start)) & (rows.token_index < int(stop))
    assert 0 < int(chosen.sum()) < stop - start - 1
    assert torch.allclose(
        rows.gradients[chosen], gradient[0, rows.token_index[chosen] - int(start)], atol=1e-5
    )


@pytest.mark.parametrize(
    ("scale", "dtype", "message"),
    [
        (1e6, "float16", r"do not fit float16 .* store them as bfloat16"),
        (float("nan"), "bfloat16", "NaN or infinite for .* the first is token .*position .*document 'doc"),
    ],
)
def test_values_that_cannot_be_stored_stop_the_cache(lm, make_store, store, tmp_path, scale, dtype, message):
    with planted(lm, common_token(store), scale), pytest.raises(SaelabError, match=message) as caught:
        make_store(tmp_path / "s", dtype=dtype)
    assert RESID_0 in str(caught.value)
    assert not list((tmp_path / "s").rglob("manifest.json"))
    if dtype == "bfloat16":
        first = int(np.flatnonzero(store.keep & (store.tokens == common_token(store)))[0])
        assert f"first is token {first} " in str(caught.value)
