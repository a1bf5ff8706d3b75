import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.errors import UsageError
from saelab.text.documents import Document
from saelab.text.packing import KeepRule, pack, predictions_that_count

BOS = "<|endoftext|>"

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.sampled_from([BOS, f"a{BOS}b", "def add(first, second):\n" * 4, ""]),
)
corpora = st.lists(st.tuples(texts, st.sampled_from(["train", "heldout"])), min_size=1, max_size=8)


def make_documents(corpus):
    return [
        Document(id=f"doc {i}", text=text, source="test", split=split)
        for i, (text, split) in enumerate(corpus)
    ]


def rows_of(sequences):
    return [
        sequences.tokens[a:b] for a, b in zip(sequences.row_starts, sequences.row_starts[1:], strict=False)
    ]


@settings(max_examples=150, deadline=None)
@given(corpora, st.integers(2, 24), st.sampled_from(["packed", "document"]))
def test_rows_begin_with_bos_and_never_mix_splits_and_documents_can_be_read_back(
    tokenizer, corpus, context, mode
):
    documents = make_documents(corpus)
    if not any(document.text for document in documents):
        with pytest.raises(UsageError, match="no tokens"):
            pack(documents, tokenizer, context=context, packing=mode)
        return
    sequences = pack(documents, tokenizer, context=context, packing=mode)
    bos = sequences.bos_token_id
    assert bos == tokenizer.bos_token_id
    table = sequences.documents
    owner = sequences.document_of_token(np.arange(len(sequences.tokens)))
    for row, start in zip(rows_of(sequences), sequences.row_starts[:-1], strict=True):
        assert 2 <= len(row) <= context
        assert row[0] == bos
        assert len(set(table.heldout[owner[start : start + len(row)]])) == 1
        if mode == "document":
            assert len(set(owner[start : start + len(row)])) == 1
    structural = np.union1d(sequences.row_starts[:-1], table.starts)
    assert np.array_equal(np.flatnonzero(sequences.tokens == bos), structural)
    with_text = [document for document in documents if document.text]
    assert table.ids == tuple(document.id for document in with_text)
    for index, document in enumerate(with_text):
        ids = sequences.tokens[owner == index]
        assert tokenizer.decode(ids[ids != bos].tolist()) == document.text
        assert table.heldout[index] == (document.split == "heldout")
        assert table.starts[index] == np.flatnonzero(owner == index)[0]
        assert table.lengths[index] == len(ids)


@settings(max_examples=100, deadline=None)
@given(
    corpora.filter(lambda corpus: any(text for text, _ in corpus)),
    st.integers(2, 12),
    st.booleans(),
    st.integers(0, 3),
    st.integers(1, 30),
)
def test_kept_tokens_and_counted_predictions_follow_their_definitions(
    tokenizer, corpus, context, mask_bos, mask_first, max_kept
):
    rule = KeepRule(mask_bos=mask_bos, mask_first_positions=mask_first)
    documents = make_documents(corpus)
    whole = pack(documents, tokenizer, context=context, keep_rule=rule)
    cut = pack(documents, tokenizer, context=context, keep_rule=rule, max_kept=max_kept)
    assert cut.keep.sum() == min(max_kept, whole.keep.sum())
    for sequences in (whole, cut):
        counts = predictions_that_count(sequences)
        bos, tokens = sequences.bos_token_id, sequences.tokens
        assert sequences.documents.lengths.sum() == len(tokens) == sequences.row_starts[-1]
        for start, stop in zip(sequences.row_starts, sequences.row_starts[1:], strict=False):
            for t in range(start, stop):
                keep = t != stop - 1 and t - start >= mask_first and not (mask_bos and tokens[t] == bos)
                is_cut_off = sequences is cut and stop == len(tokens) and t == stop - 1
                assert sequences.keep[t] == (keep and not is_cut_off)
                followed = t + 1 < stop and tokens[t + 1] != bos
                assert counts[t] == (keep and followed)
    n = len(cut.tokens)
    assert np.array_equal(cut.tokens, whole.tokens[:n])
    if max_kept < whole.keep.sum():
        assert np.flatnonzero(cut.keep)[-1] == n - 2


def test_long_documents_continue_behind_a_bos_of_their_own(tokenizer):
    documents = make_documents([("ABCDEFGHIJ", "train"), ("XY", "train")])
    sequences = pack(documents, tokenizer, context=6)
    ids = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in "ABCDEFGHIJXY"}
    expected = [[0, *"ABCDE"], [0, *"FGHIJ"], [0, *"XY"]]
    assert [row.tolist() for row in rows_of(sequences)] == [[ids.get(c, 0) for c in row] for row in expected]
    assert sequences.documents.starts.tolist() == [0, 12]


def test_a_bos_never_stands_last_in_a_row(tokenizer):
    sequences = pack(make_documents([("ABCD", "train"), ("XY", "train")]), tokenizer, context=6)
    assert [len(row) for row in rows_of(sequences)] == [5, 3]


def test_only_as_much_text_is_read_as_is_needed(tokenizer):
    read = []

    def documents():
        for i in range(100):
            read.append(i)
            yield Document(id=str(i), text="some words here", source="test")

    pack(documents(), tokenizer, context=16, max_kept=40, characters_per_call=50)
    assert len(read) < 20


def test_rows_of_a_split_hold_its_documents(tokenizer):
    corpus = [("ABCDEFGH", "train"), ("IJ", "heldout"), ("KL", "heldout"), ("MN", "train")]
    sequences = pack(make_documents(corpus), tokenizer, context=5)
    held_out = sequences.rows_of_split("heldout")
    text = tokenizer.decode(np.concatenate([rows_of(sequences)[i] for i in held_out]).tolist())
    assert text.replace(BOS, "") == "IJKL"
    both = np.concatenate([held_out, sequences.rows_of_split("train")])
    assert sorted(both.tolist()) == list(range(sequences.n_rows))


@pytest.mark.parametrize(
    ("options", "message"), [({"context": 1}, "at least 2"), ({"context": 8, "packing": "tight"}, "tight")]
)
@pytest.mark.usefixtures("unchecked")
def test_impossible_packings_are_refused(tokenizer, options, message):
    with pytest.raises(UsageError, match=message):
        pack(make_documents([("abc", "train")]), tokenizer, **options)
