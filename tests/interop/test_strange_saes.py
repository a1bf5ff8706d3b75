"""Files of other tools from strangers: nothing in them runs, nothing is read without end, one clear error each."""

import io
import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from interop_cases import case

from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.interop.arrays import read_npz
from saelab.interop.pickled import read_pickled
from saelab.interop.read import read_foreign
from saelab.storage.tensors import read_tensors, write_tensors


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def copy_of(name, tmp_path):
    folder = shutil.copytree(case(name).folder / "sae", tmp_path / name)
    return folder / case(name).about["sae"].removeprefix("sae").lstrip("/")


def config_of(folder, name="cfg.json", **changes):
    raw = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


def bombs(kind, ran):
    """Write a program into each kind of pickle."""
    file = io.BytesIO()
    if kind == "torch":
        torch.save({"pre_bias": torch.zeros(2), "encoder.weight": Bomb(ran)}, file)
    elif kind == "legacy torch":
        torch.save({"pre_bias": Bomb(ran)}, file, _use_new_zipfile_serialization=False)
    else:
        pickle.dump(Bomb(ran), file)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["torch", "legacy torch", "pickle"])
def test_a_program_in_a_pt_file_does_not_run(saelab, tmp_path, kind):
    ran = tmp_path / "ran"
    (tmp_path / "6.pt").write_bytes(bombs(kind, ran))
    code, _, err = saelab(
        "import", tmp_path / "6.pt", "--out", tmp_path / "run", "--at", "a", "--allow-pickle"
    )
    assert code == 1 and len(err.strip().splitlines()) == 1 and "unexpected" not in err
    assert not ran.exists() and not (tmp_path / "run").exists()


def test_a_pt_file_is_read_only_where_that_was_said(saelab, tmp_path):
    for name in ("dictionary-learning-AutoEncoder", "openai-topk"):
        code, _, err = saelab("import", case(name).sae, "--out", tmp_path / "run")
        assert code == 2 and "--allow-pickle" in err
        with pytest.raises(UsageError, match="allow_pickle=True"):
            read_foreign(case(name).sae)


@pytest.mark.parametrize("member", ["W_enc.npy", "extra.npy"])
def test_a_program_in_an_npz_file_does_not_run(tmp_path, member):
    place = copy_of("gemma-scope", tmp_path)
    arrays = dict(np.load(place / "params.npz"))
    arrays[member.removesuffix(".npy")] = np.array([Bomb(tmp_path / "ran")], dtype=object)
    np.savez(place / "params.npz", **arrays)
    with pytest.raises(DamagedFileError, match="not plain numbers"):
        read_foreign(place)
    assert not (tmp_path / "ran").exists()


def test_bombs_of_zip_and_headers_of_terabytes_are_refused_unread(tmp_path):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "wide.npz", "w") as archive:
        archive.writestr("W_enc.npy", npy)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", b"\0" * 200 * 2**20)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 200 * 2**20)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(DamagedFileError, match="does not fit into"):
        read_npz(tmp_path / "wide.npz")
    with pytest.raises(DamagedFileError, match="more than 10 times its size"):
        read_npz(tmp_path / "bomb.npz")
    with pytest.raises(DamagedFileError, match="is compressed"):
        read_pickled(tmp_path / "bomb.pt", allowed=True)
    assert time.process_time() - began < 1.0
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


def test_a_tensor_that_is_larger_than_its_data_is_refused(tmp_path):
    torch.save({"encoder.weight": torch.zeros(1).expand(100_000, 100_000)}, tmp_path / "6.pt")
    with pytest.raises(DamagedFileError, match="larger than its data"):
        read_pickled(tmp_path / "6.pt", allowed=True)


def test_broken_safetensors_of_other_tools(tmp_path):
    place = copy_of("saelens-jumprelu", tmp_path)
    weights = place / "sae_weights.safetensors"
    good = weights.read_bytes()

    def refused(content, match):
        weights.write_bytes(content)
        with pytest.raises(DamagedFileError, match=match):
            read_foreign(place)

    refused(struct.pack("<Q", 2**30) + good[8:], "announces a header of 1,073,741,824 bytes")
    length = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + length])
    header["b_enc"]["data_offsets"] = header["threshold"]["data_offsets"]
    text = json.dumps(header).encode()
    refused(struct.pack("<Q", len(text)) + text + good[8 + length :], "overlaps another")
    header["b_enc"] = {"dtype": "F32", "shape": [-20], "data_offsets": [0, 80]}
    text = json.dumps(header).encode()
    refused(struct.pack("<Q", len(text)) + text + good[8 + length :], "has shape")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"W_enc": torch.zeros(8, 20, dtype=torch.int32)}, "weights are floats"),
        ({"W_enc": torch.zeros(20, 8)}, "expected was 8 x 20"),
        ({"threshold": torch.full((20,), float("nan"))}, "NaN or inf"),
        ({"threshold": None}, "no tensor threshold"),
        ({"mystery": torch.zeros(3)}, "holds mystery, which this format does not know"),
    ],
)
def test_wrong_tensors(tmp_path, change, match):
    place = copy_of("saelens-jumprelu", tmp_path)
    tensors = {**read_tensors(place / "sae_weights.safetensors"), **change}
    write_tensors(place / "sae_weights.safetensors", {k: v for k, v in tensors.items() if v is not None})
    with pytest.raises(DamagedFileError, match=match):
        read_foreign(place)


def test_a_configuration_of_100_mb_or_without_end_in_depth(tmp_path):
    place = copy_of("saelens-standard", tmp_path)
    (place / "cfg.json").write_bytes(b"[" * 100_000)
    with pytest.raises(DamagedFileError, match="not valid JSON"):
        read_foreign(place)
    with (place / "cfg.json").open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(DamagedFileError, match="more than 16,777,216 bytes"):
        read_foreign(place)


@pytest.mark.parametrize(
    ("name", "file", "changes", "match"),
    [
        ("saelens-standard", "cfg.json", {"architecture": "mystery"}, "mystery cannot be imported"),
        ("saelens-standard", "cfg.json", {"architecture": None}, "does not say architecture"),
        ("saelens-standard", "cfg.json", {"architecture": 3}, "architecture is 3, not text"),
        ("saelens-standard", "cfg.json", {"architecture": "batchtopk"}, "training checkpoint"),
        ("saelens-standard", "cfg.json", {"d_in": "eight"}, "not a whole number"),
        ("saelens-standard", "cfg.json", {"d_in": -8}, "at least 1"),
        ("saelens-standard", "cfg.json", {"normalize_activations": "mystery"}, "'mystery', which cannot"),
        ("saelens-standard", "cfg.json", {"activation_fn": "tanh-relu"}, "no equal here"),
        ("saelens-topk-rescaled", "cfg.json", {"k": 99}, "cannot be"),
        ("saelens-transcoder", "cfg.json", {"apply_b_dec_to_input": True}, "transcoder cannot"),
        ("saelens-5-topk", "cfg.json", {"activation_fn_str": "tanh-relu"}, "no equal here"),
        ("sparsify-topk", "cfg.json", {"activation": "groupmax"}, "groupmax cannot be imported"),
        ("sparsify-topk", "cfg.json", {"signed": True}, "signed top-k"),
        ("sparsify-topk", "cfg.json", {"k": True}, "not a whole number"),
        ("gemma-scope-2", "config.json", {"architecture": "relu"}, "relu cannot be imported"),
        ("llama-scope", "hyperparams.json", {"act_fn": "mystery"}, "act_fn is mystery"),
        ("llama-scope", "hyperparams.json", {"jump_relu_threshold": float("nan")}, "not a finite number"),
        ("llama-scope", "hyperparams.json", {"jump_relu_threshold": 10**400}, "not a finite number"),
        ("llama-scope", "hyperparams.json", {"jump_relu_threshold": -0.1}, "below 0"),
        (
            "saelens-jumprelu-scaled",
            "activation_scaler.json",
            {"scaling_factor": float("inf")},
            "not a finite",
        ),
        ("llama-scope", "hyperparams.json", {"act_fn": None}, "does not say act_fn"),
        ("llama-scope", "hyperparams.json", {"norm_activation": "batch-wise"}, "batch-wise"),
        (
            "llama-scope",
            "hyperparams.json",
            {"sparsity_include_decoder_norm": None},
            "does not say sparsity_in",
        ),
    ],
)
def test_an_unknown_value_is_an_error_and_never_a_default(tmp_path, name, file, changes, match):
    place = copy_of(name, tmp_path)
    config_of(place, file, **changes)
    with pytest.raises(SaelabError, match=match):
        read_foreign(place)


def test_an_unknown_class_or_activation_in_a_pickle(tmp_path):
    place = copy_of("dictionary-learning-AutoEncoder", tmp_path)
    config_of(place, "config.json", trainer={"dict_class": "Mystery"})
    with pytest.raises(UsageError, match="Mystery is unknown"):
        read_foreign(place, allow_pickle=True)
    file = copy_of("openai-topk", tmp_path)
    table = torch.load(file, weights_only=True)
    for change, match in (
        ({"activation": "Tanh"}, "'Tanh' cannot"),
        ({"activation": "Identity"}, "'Identity'"),
    ):
        torch.save(table | change, file)
        with pytest.raises(UsageError, match=match):
            read_foreign(file, allow_pickle=True)
    table["activation_state_dict"]["postact_fn"] = "Identity"
    torch.save(table, file)
    with pytest.raises(UsageError, match="below 0"):
        read_foreign(file, allow_pickle=True)
