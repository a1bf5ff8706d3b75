"""What an index says of one feature, against the tables and the corpus that it was made of."""

import numpy as np
import pytest
from index_helpers import (
    D_SAE,
    DEAD_FEATURES,
    DOCUMENT_STARTS,
    N_TOKENS,
    ROW_STARTS,
    WINDOW,
    as_stored,
)

from saelab.errors import UsageError
from saelab.features.schema import COACTIVATION, DETAIL, EXAMPLES, FEATURES, KINDS, NEAR_MISS, NEIGHBORS


def test_numbers_are_those_of_the_table(index, known):
    for feature in range(D_SAE):
        found = index.row(feature)
        expected = as_stored(FEATURES, known.row(feature))
        assert {name: getattr(found, name) for name in expected} == expected
        assert found.label is None and found.shown_name == expected["name"]
        assert found.is_dead == (feature in DEAD_FEATURES)


def test_lists_are_those_of_the_table(index, known):
    for feature in range(D_SAE):
        found, expected = index.detail(feature), as_stored(DETAIL, known.tables[DETAIL][feature])
        assert list(found.activations.edges) == expected["histogram_edges"]
        assert list(found.activations.counts) == expected["histogram_counts"]
        assert list(found.intervals.edges) == expected["interval_edges"]
        assert list(found.intervals.counts) == expected["interval_counts"]
        assert list(found.logits.edges) == expected["logit_edges"]
        assert list(found.log_activations) == expected["log_histogram_counts"]
        assert [one.token for one in found.promoted] == expected["promoted"]
        assert [one.logit for one in found.promoted] == expected["promoted_logits"]
        assert [one.token for one in found.suppressed] == expected["suppressed"]
        assert [one.token for one in found.tokens] == expected["tokens"]
        assert [one.share for one in found.tokens] == expected["token_shares"]
        assert [one.n_fires for one in found.tokens] == expected["token_fires"]
        assert list(found.positions) == expected["position_shares"]


def in_order(rows, kind):
    return sorted(
        (row for row in rows if row["kind"] == KINDS[kind]), key=lambda row: (-row["bin"], row["rank"])
    )


@pytest.mark.parametrize("context", [0, 2, WINDOW, 9, None])
@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_rebuilt_within_their_rows_and_documents(index, known, kind, context):
    for feature in range(D_SAE):
        table = NEAR_MISS if kind == "near-miss" else EXAMPLES
        rows = in_order([as_stored(table, row) for row in known.of(table, feature)], kind)
        found = index.examples(feature, kind, context=context)
        assert [one.token_index for one in found] == [row["token_index"] for row in rows]
        for example, row in zip(found, rows, strict=True):
            peak = row["token_index"]
            edges = {*ROW_STARTS, *DOCUMENT_STARTS}
            start = max(s for s in edges if s <= peak)
            end = min(s for s in edges if s > peak)
            first = start if context is None else max(start, peak - context)
            last = end if context is None else min(end, peak + context + 1)
            expected = known.dense[first:last, feature].copy()
            expected[np.abs(np.arange(first, last) - peak) > WINDOW] = 0  # not kept with the example
            assert example.first == first and example.tokens == tuple(known.tokens[first:last].tolist())
            assert example.activations == tuple(expected.tolist())
            assert example.first + example.peak == peak and example.kind == kind
            for name in ("bin", "rank", "document", "activation", "window_hash"):
                assert getattr(example, name) == row[name]


def test_a_limit_takes_the_first(index):
    whole = index.examples(5, "top")
    assert len(whole) == 4 and index.examples(5, "top", limit=2) == whole[:2]
    assert index.examples(5, "top", limit=0) == ()


def test_everything_at_once_is_the_parts(index, known):
    for feature in (0, *DEAD_FEATURES, 5, D_SAE - 1):
        view = index.feature(feature, context=3)
        assert view.row == index.row(feature) and view.detail == index.detail(feature)
        assert set(view.examples) == set(KINDS)
        for kind, examples in view.examples.items():
            assert examples == index.examples(feature, kind, context=3)
        assert view.neighbors == index.neighbors(feature) and view.companions == index.companions(feature)
        others = {one.other for one in (*view.neighbors, *view.companions)}
        assert view.names == {other: known.row(other)["name"] for other in others}
        assert view.n_tokens == known.keep.sum() and view.source == "by hand; 60 tokens"


def test_neighbors_and_companions_are_those_of_the_tables(index, known):
    for feature in range(D_SAE):
        rows = [as_stored(NEIGHBORS, row) for row in known.of(NEIGHBORS, feature)]
        assert [(one.other, one.cosine) for one in index.neighbors(feature)] == [
            (row["other"], row["cosine"]) for row in rows
        ]
        rows = [as_stored(COACTIVATION, row) for row in known.of(COACTIVATION, feature)]
        names = ("other", "n_sampled", "n_both", "p_other", "lift", "phi")
        assert [tuple(getattr(one, name) for name in names) for one in index.companions(feature)] == [
            tuple(row[name] for name in names) for row in rows
        ]


def test_the_corpus_is_the_one_it_was_made_of(index, known):
    assert np.array_equal(index.tokens, known.tokens) and np.array_equal(index.keep, known.keep)
    assert index.row_starts.tolist() == ROW_STARTS and index.roles is None
    assert index.documents["id"].to_pylist() == ["a", "b", "c"]
    for position in range(N_TOKENS):
        assert index.row_of(position) == max(i for i, s in enumerate(ROW_STARTS) if s <= position)
        assert index.document_of(position) == max(i for i, s in enumerate(DOCUMENT_STARTS) if s <= position)
    for position in (-1, N_TOKENS):
        with pytest.raises(UsageError, match="positions go from 0 to 63"):
            index.row_of(position)


def test_codes_are_all_kept_pairs(index, known):
    (shard,) = index.codes()
    dense, code = np.zeros_like(known.dense), shard.code
    assert code.offsets is not None
    rows = np.repeat(shard.token_index.numpy(), np.diff(code.offsets.numpy()))
    dense[rows, code.columns.numpy()] = code.values.numpy()
    assert np.array_equal(dense, known.dense)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("feature", [-1, D_SAE, 2**70, 1.0, True, "1", None, "0; DROP TABLE numbers"])
def test_features_that_there_are_not_are_refused_with_the_range(index, feature):
    for ask in (index.row, index.detail, index.feature, index.examples, index.neighbors, index.companions):
        with pytest.raises(UsageError, match=r"there is no feature .*; features go from 0 to 39"):
            ask(feature)


@pytest.mark.usefixtures("unchecked")
def test_whole_numbers_of_numpy_are_features(index):
    assert index.row(np.int64(4)) == index.row(4)


def test_examples_that_there_are_not_are_refused(index):
    with pytest.raises(UsageError, match="there are no 'best' examples; choose one of top, interval"):
        index.examples(1, "best")
    with pytest.raises(UsageError, match="context is -1"):
        index.examples(1, context=-1)
    with pytest.raises(UsageError, match="context is -1"):
        index.feature(1, context=-1)


def test_tokens_are_shown_with_whole_characters(index):
    assert index.vocabulary.text(2) == "import" and index.vocabulary.text(1) == " import"
    assert index.vocabulary.bytes_of(6) == b"\xe6\xbc" and len(index.vocabulary) == index.n_vocabulary == 12
    shown = index.vocabulary.display([3, 6, 7, 4])
    assert shown[0] == "self" and shown[1] == "\u6f22" and shown[3] == "."
