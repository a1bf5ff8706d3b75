"""Somebody's own activations: files larger than memory, batches, and files that lie."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from activation_helpers import all_rows, data_files
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.activations import own
from saelab.activations.own import OwnBatch
from saelab.activations.store import Store
from saelab.activations.stream import StoreStream
from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.storage.tensors import TensorFile, write_tensors


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(own, "SHARD_ROWS", 64)
    monkeypatch.setattr(own, "MIN_SHARD_ROWS", 16)


def numbers(n_rows, width, dtype=torch.float32, seed=0):
    return torch.randn(n_rows, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stored(store, hook=None):
    """All rows of a store in the order of the file, checked to be there once."""
    parts = [all_rows(store, hook, split) for split in ("train", "heldout")]
    order = torch.cat([part.token_index for part in parts])
    assert order.sort().values.tolist() == list(range(len(order)))
    return torch.cat([part.x for part in parts])[order.argsort()]


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_file_is_stored_whole(tmp_path, dtype, order):
    x = numbers(1000, 6).numpy().astype(dtype)
    np.save(tmp_path / "acts.npy", np.asarray(x, order=order))
    store = Store.from_file(tmp_path / "store", tmp_path / "acts.npy", at=("vision",), dtype="float32")
    assert [hook.module_path for hook in store.hooks] == ["vision"]
    assert torch.equal(stored(store), torch.from_numpy(x.astype("<f4")))
    from_tensors = Store.from_tensors(
        tmp_path / "same", torch.from_numpy(x.astype("<f4")), hook_name="vision", dtype="float32"
    )
    splits = [[s.n_rows(None, split) for split in ("train", "heldout")] for s in (store, from_tensors)]
    assert splits[0] == splits[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_safetensors_file_gives_one_hookpoint_a_tensor(tmp_path, dtype):
    a, b = numbers(300, 4, dtype), numbers(300, 7, dtype, seed=1)
    write_tensors(
        tmp_path / "acts.safetensors", {"layer.3": a, "layer/4": b, "token_index": torch.arange(300)}
    )
    store = Store.from_file(tmp_path / "store", str(tmp_path / "acts.safetensors"), dtype="float32")
    assert [(hook.module_path, hook.d_in) for hook in store.hooks] == [("layer.3", 4), ("layer/4", 7)]
    assert torch.equal(stored(store, "layer.3"), a.float())
    assert torch.equal(stored(store, "layer/4"), b.float())
    assert not store.has_tokens
    one = Store.from_file(tmp_path / "one", tmp_path / "acts.safetensors", at=("layer/4",))
    assert [hook.module_path for hook in one.hooks] == ["layer/4"]


def test_rows_of_one_document_stay_in_one_split(tmp_path):
    document = torch.arange(400) // 7
    document[380:] = 3  # a document that comes back
    tensors = {"acts": numbers(400, 3), "document": document.to(torch.int32)}
    write_tensors(tmp_path / "acts.safetensors", tensors)
    store = Store.from_file(tmp_path / "store", tmp_path / "acts.safetensors", heldout_share=0.4)
    splits = {}
    for row, number in enumerate(document.tolist()):
        splits.setdefault(number, set()).add(store.split_of_token(row))
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "heldout"}
    assert store.documents["length"].to_pylist()[:2] == [7, 7]


def batches_of(x, example, sizes, name="block"):
    start = 0
    for size in sizes:
        yield OwnBatch({name: x[start : start + size]}, example[start : start + size])
        start += size


@settings(max_examples=12, deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 300), max_size=6),
    share=st.floats(0, 1),
)
def test_batches_of_any_size_make_the_same_store(tmp_path_factory, runs, cuts, share):
    """Where batches end shows nowhere: rows, shards, documents and splits follow from the rows alone."""
    folder = tmp_path_factory.mktemp("own")
    example = torch.tensor([number for number, length in runs for _ in range(length)])
    x = numbers(len(example), 3)
    edges = sorted({0, len(x), *(cut for cut in cuts if cut < len(x))})
    sizes = [b - a for a, b in itertools.pairwise(edges)]
    options = {"heldout_share": share, "dtype": "float32"}
    whole = Store.from_batches(folder / "whole", batches_of(x, example, [len(x)]), **options)
    parts = Store.from_batches(folder / "parts", batches_of(x, example, sizes), **options)
    assert data_files(whole.path) == data_files(parts.path)
    assert torch.equal(stored(parts), x)
    runs_of_rows = torch.unique_consecutive(example, return_counts=True)
    assert parts.documents["length"].to_pylist() == runs_of_rows[1].tolist()
    by_example = {}
    for row, number in enumerate(example.tolist()):
        assert by_example.setdefault(number, parts.split_of_token(row)) == parts.split_of_token(row)
    assert len(list((parts.path / "hooks" / "block").iterdir())) == -(-len(x) // 64)


def test_a_model_that_reads_no_tokens_is_recorded_and_its_store_can_be_trained_on(tmp_path, lm):
    example = torch.arange(200) // 10
    store = Store.from_batches(
        tmp_path / "s", batches_of(numbers(200, 3), example, [64, 64, 64, 8]), model=lm.identity
    )
    assert store.model_identity == lm.identity
    assert not store.has_tokens
    with StoreStream(store, None, batch_size=16, seed=0) as stream:
        assert stream.next().x.shape == (16, 3)


def test_an_npy_file_is_never_held_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "SHARD_ROWS", 1000)
    peaks = []
    for n_rows in (1000, 40_000):
        np.save(tmp_path / f"{n_rows}.npy", np.ones((n_rows, 64), "f4"))
        tracemalloc.start()
        store = Store.from_file(tmp_path / str(n_rows), tmp_path / f"{n_rows}.npy", dtype="float32")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(list((store.path / "hooks" / "custom").iterdir())) == n_rows // 1000
    assert peaks[1] - peaks[0] < 40_000 * 64 * 4 / 5


def test_a_safetensors_file_is_read_in_pieces(tmp_path, monkeypatch):
    lengths = []
    read_rows = TensorFile.read_rows

    def spy(self, name, start, stop):
        lengths.append(stop - start)
        return read_rows(self, name, start, stop)

    monkeypatch.setattr(TensorFile, "read_rows", spy)
    write_tensors(tmp_path / "acts.safetensors", {"acts": numbers(300, 4)})
    Store.from_file(tmp_path / "store", tmp_path / "acts.safetensors")
    assert lengths == [64, 64, 64, 64, 44]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "there are no rows"),
        ([({}, torch.arange(3))], "hook_name is empty"),
        ([({"a": torch.ones(3, 2)}, torch.ones(3))], r"example is torch.float32 \(3,\)"),
        ([({"a": torch.ones(3, 2)}, torch.arange(2))], r"must be floating \[2, d_in\]"),
        ([({"a": torch.ones(3, 2, dtype=torch.int32)}, torch.arange(3))], "int32"),
        (
            [({"a": torch.ones(3, 2)}, torch.arange(3)), ({"b": torch.ones(3, 2)}, torch.arange(3))],
            "the ones before it",
        ),
        (
            [
                ({"a": torch.ones(99, 2)}, torch.arange(99)),
                ({"a": torch.tensor([[torch.inf]] * 2).expand(2, 2)}, torch.arange(2)),
            ],
            "2 of the rows from 99 on of activations at a hold NaN or infinite values, the first is row 99",
        ),
        ([({"a": torch.full((3, 2), 1e6)}, torch.arange(3))], "store them as bfloat16"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_unusable_batches_are_refused_and_leave_nothing(tmp_path, batches, message):
    with pytest.raises(SaelabError, match=message):
        Store.from_batches(tmp_path / "s", iter(batches), dtype="float16")
    assert not (tmp_path / "s").exists()


def write_npy_header(path, text, body=b"\0" * 64):
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + body)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda p: np.save(p, np.ones(3, "f4")), r"float32 \(3,\); it must be float16"),
        (lambda p: np.save(p, np.ones((3, 0), "f4")), "not empty"),
        (lambda p: np.save(p, np.ones((3, 2), "i4")), "int32"),
        (lambda p: np.save(p, np.ones((3, 2), "V2")), "numpy has no bfloat16"),
        (lambda p: np.save(p, np.array([[{}]]), allow_pickle=True), "cannot read"),
        (lambda p: p.write_bytes(b"nonsense"), "cannot read"),
        (lambda p: p.write_bytes(b""), "cannot read"),
        (
            lambda p: write_npy_header(p, "{'descr': '<f4', 'fortran_order': False, 'shape': (99, 99)}\n"),
            "cannot read",
        ),
        (
            lambda p: write_npy_header(p, "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}\n"),
            "cannot read",
        ),
        (
            lambda p: write_npy_header(p, "{'descr': '|O', 'fortran_order': False, 'shape': (1, 4)}\n"),
            "cannot read",
        ),
        (lambda p: write_npy_header(p, "__import__('os').abort()\n"), "cannot read"),
    ],
)
def test_npy_files_that_lie_or_do_not_fit_are_refused(tmp_path, save, message):
    path = tmp_path / "acts.npy"
    save(path)
    with pytest.raises((UsageError, DamagedFileError), match=message) as caught:
        Store.from_file(tmp_path / "s", path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_an_archive_under_the_name_of_an_array_is_refused(tmp_path):
    with (tmp_path / "acts.npy").open("wb") as file:
        np.savez(file, a=np.ones((2, 2)))
    with pytest.raises(DamagedFileError, match="not a single array"):
        Store.from_file(tmp_path / "s", tmp_path / "acts.npy")


@pytest.mark.parametrize(
    ("tensors", "at", "message"),
    [
        ({"a": torch.ones(3, 2), "b": torch.ones(4, 2)}, (), "the same rows"),
        ({"a": torch.ones(3, 2), "b": torch.ones(3)}, (), r"b is torch.float32 \(3,\)"),
        ({"a": torch.ones(3, 2)}, ("c",), "no activations 'c'; it has a"),
        ({"document": torch.arange(3)}, (), "holds no floating tensor"),
        ({"a": torch.ones(3, 2), "document": torch.arange(2)}, (), r"must be whole numbers \[3\]"),
        (
            {"a": torch.ones(3, 2), "label": torch.arange(3)},
            (),
            "label is torch.int64, which are no activations",
        ),
    ],
)
def test_safetensors_files_that_do_not_fit_are_refused(tmp_path, tensors, at, message):
    write_tensors(tmp_path / "acts.safetensors", tensors)
    with pytest.raises(UsageError, match=message):
        Store.from_file(tmp_path / "s", tmp_path / "acts.safetensors", at=at)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "acts.pt").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"neither a \.npy nor a \.safetensors"):
        Store.from_file(tmp_path / "s", tmp_path / "acts.pt")
    with pytest.raises(UsageError, match="there is no file"):
        Store.from_file(tmp_path / "s", tmp_path / "none.npy")
    np.save(tmp_path / "acts.npy", np.ones((3, 2)))
    with pytest.raises(UsageError, match="one name, not a, b"):
        Store.from_file(tmp_path / "s", tmp_path / "acts.npy", at=("a", "b"))
