import json
import pickle
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from saelab.errors import DamagedFileError
from saelab.storage.tensors import HEADER_ALIGNMENT, TensorFile, read_tensors, write_tensors

TENSORS = {
    "x": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 5),
    "flags": torch.tensor([True, False]),
}


def test_tensors_of_any_stride_and_shape_come_back_and_other_readers_agree(tmp_path):
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"note": "kept"})
    ours, theirs = read_tensors(tmp_path / "a.safetensors"), load_file(tmp_path / "a.safetensors")
    for name, tensor in TENSORS.items():
        assert torch.equal(ours[name], tensor)
        assert torch.equal(theirs[name], tensor)
    with TensorFile(tmp_path / "a.safetensors") as file:
        assert file.metadata == {"note": "kept"}


def test_the_data_start_at_an_aligned_offset_and_rows_are_read_alone(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"x": TENSORS["x"]})
    raw = (tmp_path / "a.safetensors").read_bytes()
    assert (struct.unpack("<Q", raw[:8])[0] + 8) % HEADER_ALIGNMENT == 0
    with TensorFile(tmp_path / "a.safetensors") as file:
        assert torch.equal(file.read_rows("x", 1, 3), TENSORS["x"][1:3])
        with pytest.raises(DamagedFileError, match="rows 1 to 9"):
            file.read_rows("x", 1, 9)
        with pytest.raises(DamagedFileError, match="no tensor 'y'; it has x"):
            file.read("y")


def test_equal_tensors_give_equal_bytes(tmp_path):
    write_tensors(tmp_path / "a", {"p": torch.ones(3), "q": torch.zeros(2)})
    write_tensors(tmp_path / "b", {"q": torch.zeros(2), "p": torch.ones(3)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def file_with_header(path, header, data=b"\0" * 64):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(**changes):
    return {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}


@pytest.mark.parametrize(
    "header",
    [
        entry(shape=[-4]),
        entry(shape=[8]),
        entry(dtype="F99"),
        entry(dtype=["F32"]),
        entry(data_offsets=[0, 1 << 40]),
        entry(data_offsets=[16, 0]),
        entry(shape=[True]),
        entry(shape=[0, 2**70], data_offsets=[0, 0]),
        entry(shape=[2**61] * 300),
        {**entry(), "__metadata__": {"note": None}},
        {**entry(), "__metadata__": "note"},
        {**entry(), "y": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}},
        {"x": 3},
        [],
        b"{" * 50_000,
        b"not json",
    ],
    ids=range(16),
)
def test_a_header_that_lies_is_refused(tmp_path, header):
    with pytest.raises(DamagedFileError):
        read_tensors(file_with_header(tmp_path / "bad.safetensors", header))


def test_a_header_of_a_gigabyte_is_refused_unread(tmp_path):
    (tmp_path / "bomb.safetensors").write_bytes(struct.pack("<Q", 1 << 30) + b"{}")
    with pytest.raises(DamagedFileError, match="announces a header of 1,073,741,824 bytes in a file of 10"):
        read_tensors(tmp_path / "bomb.safetensors")


class Bomb:
    exploded = False

    def __reduce__(self):
        return (setattr, (Bomb, "exploded", True))


def test_a_pickle_does_not_run(tmp_path):
    (tmp_path / "bomb.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DamagedFileError):
        read_tensors(tmp_path / "bomb.safetensors")
    assert not Bomb.exploded


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=1000)
@given(position=st.integers(0, 4096 + 63), value=st.integers(0, 255), cut=st.integers(0, 64))
def test_a_changed_byte_or_a_cut_is_read_or_refused_with_our_own_error(tmp_path, position, value, cut):
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(16)})
    raw = bytearray((tmp_path / "a.safetensors").read_bytes())
    raw[position] = value
    (tmp_path / "a.safetensors").write_bytes(raw[: len(raw) - cut])
    try:
        tensors = read_tensors(tmp_path / "a.safetensors")
    except DamagedFileError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
