"""Top contexts are the strongest firings with their text, and telling features are the clear ones."""

import pytest
import torch

from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.evaluation.examples import Context, FeatureExamples, render_text, top_contexts
from saelab.evaluation.telling import telling_features
from saelab_kernels.code import SparseCode

HOOK = "model.layers.0.output"


@pytest.fixture
def hook(world):
    return world.masked.hook(HOOK)


def all_firings(sae, store, feature):
    """Return {token position: activation} of one feature over the held-out rows, the slow way."""
    rows = store.rows(HOOK, "heldout", 0, store.n_rows(HOOK, "heldout"))
    column = sae.encode(rows.x).dense()[:, feature]
    return {
        int(index): float(value) for index, value in zip(rows.token_index, column, strict=True) if value > 0
    }


def test_contexts_are_the_strongest_of_each_sequence(world, hook, known_sae):
    store, sae = world.masked, known_sae(lambda x: x, world.masked)
    (found,) = top_contexts(sae, store, hook, features=[5], per_feature=4, context_tokens=12)
    firings = all_firings(sae, store, 5)
    row_of = {index: int((store.row_starts <= index).sum()) for index in firings}
    strongest = {}
    for index in sorted(firings, key=lambda index: -firings[index]):
        strongest.setdefault(row_of[index], index)
    expected = list(strongest.values())[:4]
    assert [context.token_index for context in found.contexts] == expected
    assert [context.activation for context in found.contexts] == [firings[index] for index in expected]
    assert found.feature == 5
    assert found.density == len(firings) / store.n_rows(HOOK, "heldout")


def test_a_context_shows_tokens_and_activations_around_the_peak(world, hook, known_sae):
    store, sae = world.masked, known_sae(lambda x: x, world.masked)
    (found,) = top_contexts(sae, store, hook, features=[3], per_feature=50, context_tokens=12)
    firings = all_firings(sae, store, 3)
    assert len(found.contexts) > 5
    for context in found.contexts:
        first = context.token_index - context.active
        span = range(first, first + len(context.tokens))
        assert len(context.tokens) <= 12 and context.active <= 9
        assert list(context.tokens) == store.tokens[first : span.stop].tolist()
        assert list(context.activations) == [firings.get(index, 0.0) for index in span]
        assert context.activations[context.active] == context.activation
        row = int((store.row_starts <= context.token_index).sum()) - 1
        assert store.row_starts[row] <= first and span.stop <= store.row_starts[row + 1]


def test_features_come_in_the_order_asked_for_and_dead_ones_are_empty(world, hook, known_sae):
    sae = known_sae(lambda x: torch.cat([x[:, :1].relu(), torch.zeros_like(x[:, 1:])], dim=1), world.masked)
    found = top_contexts(sae, world.masked, hook, features=[9, 0], per_feature=2)
    assert [example.feature for example in found] == [9, 0]
    assert found[0] == FeatureExamples(9, 0.0, ())
    assert len(found[1].contexts) == 2
    assert "never active" in render_text(found, str)


def test_wrong_features_and_stores_without_text_are_refused(world, hook, known_sae, tmp_path):
    sae = known_sae(lambda x: x, world.masked)
    with pytest.raises(UsageError, match="there is no feature 64; this SAE has 0 to 63"):
        top_contexts(sae, world.masked, hook, features=[64])
    own = Store.from_tensors(tmp_path / "own", torch.randn(100, 6), dtype="float32")
    with pytest.raises(UsageError, match="has no tokens to show"):
        top_contexts(known_sae(lambda x: x, own, 6, "custom"), own, own.hook(), features=[0])


def test_text_marks_the_active_token_and_disarms_control_characters():
    words = {0: "def", 1: " self", 2: "\n", 3: "\x1b[31m", 4: "é"}
    context = Context(2.5, 7, (0, 1, 2, 3, 4), (0.0, 2.5, 0.0, 1.0, 0.0), 1)
    text = render_text([FeatureExamples(12, 0.00125, (context,))], words.__getitem__)
    assert text == "feature 12  active on 0.125% of tokens\n      2.50  def« self»⏎\\x1b[31mé"


class TokenTypeSAE:
    """Feature i fires according to a table of token ids, with the activation of a counter."""

    def __init__(self, sae, store, rules, d_sae):
        self.W_dec, self.rules, self.store, self.done = sae.W_dec, rules, store, 0
        self.config = sae.config
        self.d_sae = d_sae

    def encode(self, x):
        n_rows = self.store.n_rows(HOOK, "heldout")
        stop = min(self.done + len(x), n_rows)
        index = self.store.rows(HOOK, "heldout", self.done, stop).token_index
        dense = torch.zeros(len(x), self.d_sae)
        for feature, rule in enumerate(self.rules):
            fires = [rule(position, int(self.store.tokens[position])) for position in index.tolist()]
            dense[: len(fires), feature] = torch.tensor(fires)
        self.done = stop % n_rows
        return SparseCode.from_dense(dense)

    def reconstruct(self, x):
        raise AssertionError("features are chosen by their activations alone")


def test_telling_features_are_concentrated_sparse_and_different(world, hook, known_sae):
    store = world.masked
    rows = store.rows(HOOK, "heldout", 0, store.n_rows(HOOK, "heldout"))
    ids = torch.from_numpy(store.tokens[rows.token_index.numpy()].astype("int64"))
    counts = torch.bincount(ids)
    n = len(ids)
    fit = [token for token in range(len(counts)) if 8 <= counts[token] <= 0.02 * n]
    assert len(fit) >= 2
    first, second = fit[:2]
    every = max(60, n // 40)
    rules = [
        lambda position, token: float(position % every == 0),  # spread over token types
        lambda position, token: float(token % 3 == 0),  # too dense
        lambda position, token: float(token == first),
        lambda position, token: 2.0 * (token == first),  # the same thing again
        lambda position, token: float(token == second) * (1 + position % 7),  # peaked, another thing
        lambda position, token: float(position == int(rows.token_index[0])),  # fires once
    ]
    base = known_sae(lambda x: x, store)
    chosen = telling_features(TokenTypeSAE(base, store, rules, 64), store, hook, n=2)
    assert sorted(chosen) == [2, 4]
    assert chosen[0] == 4, "of two equally concentrated features the more peaked one comes first"
    assert telling_features(TokenTypeSAE(base, store, rules, 64), store, hook, n=1) == [4]
    everything = telling_features(TokenTypeSAE(base, store, rules, 64), store, hook, n=10)
    assert everything[:2] == [4, 2] and not {1, 3, 5} & set(everything)


def test_the_choice_is_the_same_every_time(world, hook, known_sae):
    sae = known_sae(lambda x: (x - 2.5).relu(), world.masked)
    first = telling_features(sae, world.masked, hook, n=5)
    assert first and first == telling_features(sae, world.masked, hook, n=5)
