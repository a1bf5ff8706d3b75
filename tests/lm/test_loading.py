import json
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.lm import embedded
from saelab.lm.identity import ModelIdentity, hash_model
from saelab.lm.load import load_model
from saelab.lm.spec import ModelSpec
from saelab.storage.tensors import read_tensors


def cpu(name, **more):
    return ModelSpec(name=str(name), device="cpu", **more)


def one_line_error(spec, error_type=SaelabError):
    with pytest.raises(error_type) as caught:
        load_model(spec)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


@pytest.fixture
def copied(llama_folder, tmp_path):
    return shutil.copytree(llama_folder, tmp_path / "copy")


def test_a_loaded_model_is_frozen_and_described(lm):
    assert not lm.hf.training
    assert not any(p.requires_grad for p in lm.hf.parameters())
    assert (lm.n_layers, lm.context, lm.device, lm.hf.dtype) == (3, 32, torch.device("cpu"), torch.float32)
    assert lm.identity.name == f"tiny-{lm.hf.config.model_type}"
    assert (lm.identity.dtype, lm.identity.attention, lm.identity.revision) == ("float32", "sdpa", None)
    assert lm.tokenizer.decode(lm.tokenizer.encode("def f():", add_special_tokens=False)) == "def f():"


def test_half_precision_weights_become_float32_on_the_cpu_and_stay_it_on_request(copied):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(copied).half().save_pretrained(copied)
    assert load_model(cpu(copied)).hf.dtype == torch.float32
    assert load_model(cpu(copied, dtype="bfloat16")).identity.dtype == "bfloat16"


def test_loading_a_folder_never_touches_the_network(lm, folders, monkeypatch):
    attempts = []

    def refuse(*arguments, **_):
        attempts.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_model(cpu(folders[lm.hf.config.model_type]))
    assert attempts == []


def test_the_identity_follows_configuration_and_weights_not_the_folder(copied, llama_folder):
    original = hash_model(llama_folder)
    assert hash_model(copied) == original

    weights = copied / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = read_tensors(weights), read_tensors(llama_folder / "model.safetensors")
    assert sum(int((changed[0][name] != changed[1][name]).sum()) for name in changed[0]) == 1
    assert hash_model(copied) != original
    assert load_model(cpu(copied)).identity.hash == hash_model(copied)

    shutil.copy(llama_folder / "model.safetensors", weights)
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"transformers_version": "0"}))
    assert hash_model(copied) == original
    (copied / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert hash_model(copied) != original


def test_the_tokenizer_hash_follows_the_vocabulary_and_not_the_use(copied, llama_folder):
    original = load_model(cpu(llama_folder)).identity.tokenizer_hash
    assert load_model(cpu(copied)).identity.tokenizer_hash == original
    raw = json.loads((copied / "tokenizer.json").read_text())
    raw["model"]["merges"].pop()
    (copied / "tokenizer.json").write_text(json.dumps(raw))
    assert load_model(cpu(copied)).identity.tokenizer_hash != original


def test_padding_a_batch_leaves_the_tokenizer_hash(lm):
    from saelab.lm.identity import hash_tokenizer

    lm.tokenizer.backend_tokenizer.enable_truncation(5)
    try:
        assert hash_tokenizer(lm.tokenizer) == lm.identity.tokenizer_hash
    finally:
        lm.tokenizer.backend_tokenizer.no_truncation()


def test_an_identity_survives_json_and_refuses_what_is_not_one(lm):
    raw = json.loads(json.dumps(lm.identity.to_json()))
    assert ModelIdentity.from_json(raw) == lm.identity
    for wrong in (
        {},
        [],
        raw | {"extra": "1"},
        raw | {"hash": 3},
        {k: v for k, v in raw.items() if k != "name"},
    ):
        with pytest.raises(DamagedFileError):
            ModelIdentity.from_json(wrong)


def test_the_embedded_model_is_read_from_the_package_folder(llama_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_FOLDER", tmp_path)
    assert "config.json" in one_line_error(ModelSpec(device="cpu"))
    monkeypatch.setattr(embedded, "_FOLDER", llama_folder)
    assert load_model(ModelSpec(device="cpu")).identity.name == "embedded"


def test_missing_folders_and_folders_of_something_else_are_named(tmp_path):
    assert "no model folder" in one_line_error(cpu(tmp_path / "nothing"))
    assert "no config.json" in one_line_error(cpu(tmp_path))
    assert "revision" in one_line_error(cpu(tmp_path, revision="main"), UsageError)


@pytest.mark.usefixtures("unchecked")
def test_unknown_devices_and_dtypes_are_named(llama_folder):
    name = str(llama_folder)
    assert "no device 'gpu'" in one_line_error(ModelSpec(name=name, device="gpu"), UsageError)
    assert "not available" in one_line_error(ModelSpec(name=name, device="cuda:99"), UsageError)
    assert "float64" in one_line_error(cpu(name, dtype="float64"), UsageError)


def test_incomplete_weights_are_refused_instead_of_filled_with_random_ones(copied):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copied / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    assert "model.norm.weight" in one_line_error(cpu(copied))


def test_damaged_and_foreign_files_give_one_line(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    assert "no *.safetensors" in one_line_error(cpu(copied))
    (copied / "model.safetensors").write_bytes((copied / "pytorch_model.bin").read_bytes()[:-100])
    assert "cannot load the model copy" in one_line_error(cpu(copied))
    (copied / "pytorch_model.bin").rename(copied / "model.safetensors")
    (copied / "tokenizer.json").write_text("{")
    assert "tokenizer of copy" in one_line_error(cpu(copied))
    (copied / "config.json").write_text("{")
    assert "config.json" in one_line_error(cpu(copied))


def hub_error(kind):
    import httpx
    from huggingface_hub import errors

    response = httpx.Response(401, request=httpx.Request("GET", "https://hub.example/model"))
    if kind in ("GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError"):
        return getattr(errors, kind)("first line\nsecond line", response=response)
    return {"offline": errors.OfflineModeIsEnabled("offline\nmode"), "connect": httpx.ConnectError("")}[kind]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("GatedRepoError", "gated"),
        ("RepositoryNotFoundError", "no model of that name"),
        ("RevisionNotFoundError", "no revision 'v9'"),
        ("offline", "offline"),
        ("connect", "ConnectError"),
    ],
)
def test_hub_failures_become_one_line(monkeypatch, kind, expected):
    def fail(*_, **__):
        raise hub_error(kind)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    message = one_line_error(ModelSpec(name="someone/some-model", revision="v9", device="cpu"))
    assert expected in message
    assert "someone/some-model" in message


def test_a_hub_model_is_loaded_from_its_snapshot_under_its_name_and_commit(copied, monkeypatch):
    commit = copied.rename(copied.with_name("0123abc"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(commit))
    identity = load_model(ModelSpec(name="someone/some-model", device="cpu")).identity
    assert (identity.name, identity.revision) == ("someone/some-model", "0123abc")


def test_the_modules_behind_help_import_no_torch():
    code = "import sys, saelab.lm.spec; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_hookpoint_names_can_be_used_without_transformers():
    code = "import sys, saelab.lm.hooks, saelab.lm.run; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_loading_prints_nothing(llama_folder, capfd):
    load_model(cpu(llama_folder))
    assert capfd.readouterr() == ("", "")


def test_a_revision_goes_to_the_hub_and_listing_asks_for_the_configuration_alone(copied, monkeypatch):
    from saelab.lm.probe import list_hookpoints

    asked = []

    def download(name, **options):
        asked.append((name, options["revision"], options["allow_patterns"]))
        return str(copied)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    spec = ModelSpec(name="someone/some-model", revision="v2", device="cpu")
    assert list_hookpoints(spec) == list(load_model(spec).hookpoints)
    listing, loading = asked
    assert listing == ("someone/some-model", "v2", ["config.json"])
    assert loading[:2] == ("someone/some-model", "v2")
    assert "*.safetensors" in loading[2]
    assert "*.bin" not in loading[2]
