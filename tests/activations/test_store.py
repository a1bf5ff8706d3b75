import json
import shutil
import threading

import numpy as np
import pytest
import torch
from activation_helpers import RESID_0, RESID_1, data_files
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.activations import shards
from saelab.activations.layout import document_table
from saelab.activations.row_map import RowMap
from saelab.activations.store import Store
from saelab.activations.stream import StoreStream
from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.storage.manifest import digest_of_body
from saelab.text.packing import DocumentTable


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_row_map_agrees_with_a_row_by_row_count(data):
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))
    heldout = np.array(data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths))))
    starts = np.cumsum([0, *lengths[:-1]])
    table = DocumentTable(
        ids=tuple(map(str, range(len(lengths)))),
        starts=starts,
        lengths=np.array(lengths),
        sources=("test",) * len(lengths),
        heldout=heldout,
    )
    found = RowMap(keep, table)
    split_of_row = np.repeat(heldout, lengths)[keep]
    for split, wanted in (("train", False), ("heldout", True)):
        rows = np.flatnonzero(split_of_row == wanted)
        assert found.count(split) == len(rows)
        start = data.draw(st.integers(0, len(rows)))
        stop = data.draw(st.integers(start, len(rows)))
        pieces = found.pieces(split, start, stop)
        assert [r for a, b in pieces for r in range(a, b)] == rows[start:stop].tolist()
        first, end = sorted((data.draw(st.integers(0, keep.sum())), data.draw(st.integers(0, keep.sum()))))
        within = found.pieces_within(split, first, end)
        assert [r for a, b in within for r in range(a, b)] == rows[(rows >= first) & (rows < end)].tolist()
        documents = [
            int(keep[a : a + n].sum())
            for a, n, h in zip(starts, lengths, heldout, strict=True)
            if h == wanted
        ]
        assert found.rows_of_documents(split).tolist() == documents


def test_any_range_of_rows_is_the_slice_of_all(store):
    n = store.n_rows(RESID_1, "train")
    everything = store.rows(RESID_1, "train", 0, n)
    assert everything.x.dtype == torch.float32
    for start, stop in [(0, 0), (0, 1), (n - 1, n), (17, 301), (199, 203), (n, n)]:
        rows = store.rows(RESID_1, "train", start, stop)
        assert torch.equal(rows.x, everything.x[start:stop])
        assert torch.equal(rows.token_index, everything.token_index[start:stop])
        assert torch.equal(rows.gradients, everything.gradients[start:stop])
    with pytest.raises(UsageError, match="which has"):
        store.rows(RESID_1, "train", 0, n + 1)


def test_threads_read_the_same_rows_even_when_few_files_may_be_open(store, monkeypatch):
    monkeypatch.setattr(shards, "MAX_OPEN_SHARDS", 1)
    expected = store.rows(RESID_0, "train", 0, 390).x
    with Store.open(store.path) as fresh:
        wrong = []

        def read(start):
            if not torch.equal(
                fresh.rows(RESID_0, "train", start, start + 150).x, expected[start : start + 150]
            ):
                wrong.append(start)

        threads = [threading.Thread(target=read, args=(start,)) for start in range(0, 240, 10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_hooks_are_found_by_either_spelling(store):
    assert store.hook(RESID_1) is store.hook("model.layers.1.output") is store.hook(store.hooks[1])
    assert store.hook(RESID_1).slug == "model.layers.1.output"
    with pytest.raises(UsageError, match=f"several hookpoints.*{RESID_0}, {RESID_1}"):
        store.hook()
    with pytest.raises(UsageError, match=r"no hookpoint 'blocks.9'; it has"):
        store.hook("blocks.9")


def test_the_same_content_has_the_same_identity_wherever_it_lies(store, tmp_path):
    copy = tmp_path / "Kopie mit Ümlaut"
    shutil.copytree(store.path, copy)
    assert Store.open(copy).identity == store.identity
    assert Store.open(str(copy)).hooks == store.hooks


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_own_tensors_make_the_round_trip(tmp_path, dtype):
    x = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    store = Store.from_tensors(tmp_path / "my acts", x, hook_name="vision/block 3: Ausgänge", dtype=dtype)
    assert [hook.module_path for hook in store.hooks] == ["vision/block 3: Ausgänge"]
    expected = x.to(getattr(torch, dtype)).float()
    seen = []
    for split in ("train", "heldout"):
        rows = store.rows(None, split, 0, store.n_rows(None, split))
        assert torch.equal(rows.x, expected[rows.token_index])
        seen += rows.token_index.tolist()
        assert {store.split_of_token(t) for t in rows.token_index.tolist()} == {split}
    assert sorted(seen) == list(range(1000))
    assert 20 <= store.n_rows(None, "heldout") <= 100
    assert store.statistics().n_rows == store.n_rows(None, "train")
    assert (store.has_tokens, store.model_identity, store.model_spec(), store.tokenizer_hash) == (
        False,
        None,
        None,
        None,
    )
    with pytest.raises(SaelabError, match="no tokens"):
        _ = store.tokens
    again = Store.from_tensors(tmp_path / "again", x, hook_name="vision/block 3: Ausgänge", dtype=dtype)
    assert data_files(again.path) == data_files(store.path)


def test_a_store_of_heldout_rows_alone_has_their_statistics_and_no_training_stream(tmp_path):
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    store = Store.from_tensors(tmp_path / "s", x, heldout_share=1.0, dtype="float32")
    assert (store.n_rows(None, "train"), store.n_rows(None, "heldout")) == (0, 50)
    assert torch.allclose(store.statistics().mean, x.double().mean(0))
    with pytest.raises(UsageError, match="at most 0"):
        StoreStream(store, None, batch_size=1, seed=0)


def test_neighbouring_own_rows_share_a_split(tmp_path):
    store = Store.from_tensors(tmp_path / "s", torch.randn(20_000, 2))
    table = store.documents
    assert set(table["length"].to_pylist()[:-1]) == {50}


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.ones(3), {}, r"float32 \(3,\)"),
        (torch.ones(3, 2, dtype=torch.int32), {}, "int32"),
        (torch.ones(0, 2), {}, "not empty"),
        (torch.ones(3, 2), {"hook_name": ""}, "hook_name is empty"),
        (torch.tensor([[1.0], [float("nan")]]), {}, "first is row 1"),
        (torch.full((3, 2), 1e6), {"dtype": "float16"}, "store them as bfloat16"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_unusable_own_tensors_are_refused(tmp_path, x, options, message):
    with pytest.raises(SaelabError, match=message):
        Store.from_tensors(tmp_path / "s", x, **options)
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_own_tensors_never_overwrite_a_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SaelabError, match="not empty"):
        Store.from_tensors(tmp_path, torch.ones(3, 2))


def tampered(store, tmp_path, change):
    """Copy a store with its manifest's content changed, as a stranger would who knows its checksum."""
    copy = tmp_path / "copy"
    shutil.copytree(store.path, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest["content"])
    manifest.pop("blake2b")
    (copy / "manifest.json").write_text(json.dumps(manifest | {"blake2b": digest_of_body(manifest)}))
    return copy


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("hooks"),
        lambda c: c.update(hooks=[]),
        lambda c: c.update(shards=[-1]),
        lambda c: c.update(shards=["many"]),
        lambda c: c.update(n_tokens=10),
        lambda c: c.update(n_tokens=10**4300 - 1),
        lambda c: c["hooks"][0].update(slug="../elsewhere"),
        lambda c: c["hooks"][0].update(d_in=0),
        lambda c: c["hooks"][0].update(dtype="object"),
        lambda c: c["hooks"][0].update(extra=1),
        lambda c: c["hooks"][0].update(alias=[True]),
        lambda c: c["hooks"][0].update(has_gradients="no"),
        lambda c: c["model_spec"].update(dtype=3),
        lambda c: c["hooks"][1].update(slug=c["hooks"][0]["slug"]),
        lambda c: c.update(model={"hash": 3}),
        lambda c: c.update(model_spec={"name": "x", "unknown": 1}),
        lambda c: c.update(statistics=3),
        lambda c: c.update(notes=3),
        lambda c: c.update(bos_token_id=float("inf")),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_manifest_that_lies_is_refused(store, tmp_path, change):
    with pytest.raises(DamagedFileError):
        Store.open(tampered(store, tmp_path, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [h.update(d_in=13) for h in c["hooks"]], "expected torch.float32"),
        (lambda c: c.update(shards=c["shards"][::-1]), "expected torch"),
        (lambda c: c.update(n_tokens=c["n_tokens"] + 8), "expected"),
    ],
)
def test_rows_that_contradict_the_manifest_are_refused(store, tmp_path, change, message):
    opened = Store.open(tampered(store, tmp_path, change))
    with pytest.raises(DamagedFileError, match=message):
        opened.rows(RESID_0, "train", 0, opened.n_rows(RESID_0, "train"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("start", 5, "do not follow one another"),
        ("length", -1, "do not follow one another"),
        ("split", "test", "a split is neither train nor heldout"),
    ],
)
def test_a_document_table_that_lies_is_refused(store, column, value, message):
    table = store.documents
    values = table[column].to_pylist()
    values[1] = value
    lying = table.set_column(table.column_names.index(column), column, [values])
    with pytest.raises(DamagedFileError, match=message):
        document_table(lying, len(store.tokens), store.path)


@pytest.mark.parametrize("column", ["id", "source"])
@pytest.mark.usefixtures("unchecked")
def test_a_document_without_id_or_source_is_refused(store, column):
    table = store.documents
    values = [None, *table[column].to_pylist()[1:]]
    holed = table.set_column(table.column_names.index(column), column, [values])
    assert document_table(table, len(store.tokens), store.path).ids
    with pytest.raises(DamagedFileError, match="an id or a source is not text"):
        document_table(holed, len(store.tokens), store.path)


def test_sequences_are_what_was_packed(store):
    sequences = store.sequences
    assert np.array_equal(sequences.row_starts, store.row_starts)
    rows = np.concatenate([store.sequence_rows("train"), store.sequence_rows("heldout")])
    assert sorted(rows.tolist()) == list(range(sequences.n_rows))
    assert sequences.documents.ids == tuple(store.documents["id"].to_pylist())
