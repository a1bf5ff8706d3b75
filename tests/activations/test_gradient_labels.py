"""Gradients of labels that are sampled from the model: drawn by position and seed, from the model's distribution."""

import numpy as np
import pytest
import torch
from activation_helpers import RESID_0, all_rows

from saelab.activations.spec import LiveConfig
from saelab.activations.uniform import uniform_numbers
from saelab.errors import UsageError
from saelab.lm.losses import sampled_tokens
from saelab.lm.run import capture_with_gradients, final_hidden, unembedding
from saelab.lm.unembedding import Unembedding
from saelab.storage.manifest import read_manifest


def test_uniform_numbers_follow_position_and_seed_alone_and_are_uniform():
    index = torch.arange(40_000)
    numbers = uniform_numbers(index, 3)
    shuffled = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform_numbers(index[shuffled].view(200, 200), 3).flatten(), numbers[shuffled])
    counts = np.histogram(numbers.numpy(), bins=20, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 45  # chi squared of 19 degrees: above 45 once in 1,500 times
    others = uniform_numbers(index, 4)
    for other in (others, numbers.roll(1)):
        assert abs(float(torch.corrcoef(torch.stack([numbers, other]))[0, 1])) < 0.02
    assert 0 <= float(numbers.min()) < float(numbers.max()) < 1


def head_of(logits):
    """An unembedding whose logits for the hidden state 1 are these."""
    return Unembedding(weight=logits[:, None], bias=None, soft_cap=None)


@pytest.mark.parametrize("tile", [2, 3, 100])
def test_tokens_are_drawn_by_the_inverse_of_the_distribution_function(tile):
    p = torch.tensor([0.1, 0.4, 0.0, 0.3, 0.2])
    u = torch.tensor([0.0, 0.05, 0.15, 0.45, 0.55, 0.75, 0.85, 0.999999999], dtype=torch.float64)
    drawn = sampled_tokens(torch.ones(len(u), 1), head_of(p.log()), u, row_tile=3, vocabulary_tile=tile)
    assert drawn.tolist() == [0, 0, 1, 1, 3, 3, 4, 4]


def test_the_frequencies_of_drawn_tokens_are_the_models_probabilities():
    logits = torch.randn(7, generator=torch.Generator().manual_seed(1))
    n = 20_000
    drawn = sampled_tokens(torch.ones(n, 1), head_of(logits), uniform_numbers(torch.arange(n), 0))
    found = torch.bincount(drawn, minlength=7) / n
    torch.testing.assert_close(found, logits.softmax(0), atol=0.01, rtol=0)


def test_gradients_of_given_labels_equal_those_of_a_text_that_has_them(lm):
    """With u at 0.5 for the last prediction, the gradient is that of the drawn token as if it followed."""
    hookpoint = lm.hookpoints[2]
    ids = torch.tensor([[0, 40, 41, 42, 43]])
    counted = torch.tensor([[False, False, False, True, False]])
    uniform = torch.full(ids.shape, 0.5, dtype=torch.float64)
    _, sampled, loss = capture_with_gradients(lm, ids, [hookpoint], counted, uniform)
    drawn = sampled_tokens(final_hidden(lm, ids)[counted], unembedding(lm), uniform[counted])
    ids[0, 4] = drawn[0]
    _, followed, true_loss = capture_with_gradients(lm, ids, [hookpoint], counted)
    torch.testing.assert_close(sampled[hookpoint][:, :4], followed[hookpoint][:, :4])
    torch.testing.assert_close(loss, true_loss)


def test_a_store_of_sampled_labels_has_other_gradients_and_the_same_rest_and_says_so(make_store, tmp_path):
    options = {"gradients": True, "dtype": "float32"}
    true = make_store(tmp_path / "true", **options)
    sampled = make_store(tmp_path / "sampled", gradient_labels="sampled", **options)
    again = make_store(tmp_path / "again", gradient_labels="sampled", **options)
    other = make_store(tmp_path / "other", gradient_labels="sampled", gradient_seed=1, **options)
    rows = [all_rows(store, RESID_0) for store in (true, sampled, again, other)]
    assert torch.equal(rows[0].x, rows[1].x)
    assert torch.equal(rows[1].gradients, rows[2].gradients)
    for a, b in ((0, 1), (1, 3)):
        assert (rows[a].gradients != rows[b].gradients).any(1).float().mean() > 0.5
    assert np.array_equal(true.losses, sampled.losses, equal_nan=True)  # of the true labels in both
    facts = [read_manifest(store.path, "store").content["provenance"] for store in (true, sampled, other)]
    assert [found["gradient_labels"] for found in facts] == ["true", "sampled", "sampled"]
    assert [found["gradient_seed"] for found in facts] == [None, 0, 1]
    assert "sampled from the model" in facts[1]["gradients"]
    assert "tokens that follow" in facts[0]["gradients"]


def test_a_longer_store_draws_the_same_labels_for_the_tokens_that_it_shares(make_store, tmp_path):
    options = {"gradients": True, "dtype": "float32", "gradient_labels": "sampled", "shard_rows": 100}
    short = all_rows(make_store(tmp_path / "short", tokens=200, **options), RESID_0)
    long = all_rows(make_store(tmp_path / "long", tokens=500, **options), RESID_0)
    n = 100  # the last rows of tokens of the short one are cut, and the gradient looks ahead
    assert torch.equal(short.token_index[:n], long.token_index[:n])
    torch.testing.assert_close(short.gradients[:n], long.gradients[:n], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [{"gradient_labels": "best"}, {"gradient_seed": -1}])
def test_labels_that_there_are_not_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        LiveConfig(at=(RESID_0,), **wrong)
