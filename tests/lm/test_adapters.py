"""A LoRA is merged, belongs to the model's identity, and is refused where it does not fit."""

import json
import shutil
import sys

import pytest
import torch

from saelab.errors import SaelabError
from saelab.lm.identity import ModelIdentity, hash_adapter
from saelab.lm.load import load_model
from saelab.lm.run import capture
from saelab.lm.spec import ModelSpec


def save_adapter(model_folder, folder, seed=0, **options):
    import peft
    from transformers import AutoModelForCausalLM

    config = peft.LoraConfig(
        r=3, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **options
    )
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder, model.eval()


@pytest.fixture(scope="module")
def adapter(llama_folder, tmp_path_factory):
    return save_adapter(llama_folder, tmp_path_factory.mktemp("adapters") / "pirate")


@pytest.fixture
def copied(adapter, tmp_path):
    return shutil.copytree(adapter[0], tmp_path / "copy")


def load(llama_folder, adapter_folder, **more):
    name = None if adapter_folder is None else str(adapter_folder)
    return load_model(ModelSpec(name=str(llama_folder), device="cpu", adapter=name, **more))


def one_line(llama_folder, adapter_folder):
    with pytest.raises(SaelabError) as caught:
        load(llama_folder, adapter_folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_merged_activations_are_those_of_the_unmerged_model_of_peft(llama_folder, adapter):
    folder, unmerged = adapter
    lm, plain = load(llama_folder, folder), load(llama_folder, None)
    ids = torch.randint(1, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    place = next(h for h in lm.hookpoints if h.alias == "blocks.2.hook_resid_post")
    found = []
    layer = unmerged.base_model.model.model.layers[2]
    handle = layer.register_forward_hook(lambda _, __, output: found.append(output.detach()))
    with torch.no_grad():
        logits = unmerged(input_ids=ids).logits
    handle.remove()
    torch.testing.assert_close(capture(lm, ids, [place])[place], found[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(lm.hf(input_ids=ids).logits, logits, rtol=1e-4, atol=1e-5)
    # The comparison above says something only because the adapter changes a lot.
    assert (found[0] - capture(plain, ids, [place])[place]).abs().max() > 0.1
    assert lm.hookpoints == plain.hookpoints
    assert [type(m) for m in lm.module.modules()] == [type(m) for m in plain.module.modules()]
    assert not any(p.requires_grad for p in lm.module.parameters())


def test_the_hash_follows_the_adapters_weights_and_configuration_not_its_folder(adapter, copied):
    original = hash_adapter(adapter[0])
    assert hash_adapter(copied) == original
    config = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(config | {"peft_version": "0"}))
    assert hash_adapter(copied) == original
    (copied / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 9}))
    assert hash_adapter(copied) != original
    (copied / "adapter_config.json").write_text(json.dumps(config))
    weights = bytearray((copied / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "adapter_model.safetensors").write_bytes(weights)
    assert hash_adapter(copied) != original


def test_the_identity_of_a_model_has_its_adapter(llama_folder, adapter, copied):
    plain, merged = load(llama_folder, None).identity, load(llama_folder, adapter[0]).identity
    assert plain.adapter is None
    assert merged.adapter == f"pirate:{hash_adapter(adapter[0])}"
    assert merged.hash != plain.hash
    config = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 9}))
    assert load(llama_folder, copied).identity.hash not in (merged.hash, plain.hash)
    assert ModelIdentity.from_json(merged.to_json()) == merged


def test_an_adapter_of_another_model_is_refused(llama_folder, folders, tmp_path):
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    deeper = AutoModelForCausalLM.from_pretrained(llama_folder).config
    deeper.num_hidden_layers = 5
    LlamaForCausalLM(deeper).save_pretrained(tmp_path / "deeper")
    for_deeper, _ = save_adapter(tmp_path / "deeper", tmp_path / "for-deeper")
    message = one_line(llama_folder, for_deeper)
    assert "for-deeper does not fit" in message
    assert "layers.3" in message
    assert "does not fit" in one_line(folders["gpt2"], for_deeper)


def test_missing_weights_are_refused_instead_of_filled_with_random_ones(llama_folder, copied):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copied / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, copied / "adapter_model.safetensors", metadata={"format": "pt"})
    assert name in one_line(llama_folder, copied)


def test_damaged_and_foreign_adapters_give_one_line(llama_folder, copied, tmp_path):
    config = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    assert "type IA3" in one_line(llama_folder, copied)
    (copied / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in one_line(llama_folder, copied)
    (copied / "adapter_config.json").write_text(json.dumps(config))
    weights = copied / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "cannot read the adapter copy" in one_line(llama_folder, copied)
    weights.unlink()
    assert "no adapter_model.safetensors" in one_line(llama_folder, copied)
    assert "no adapter folder" in one_line(llama_folder, tmp_path / "nothing")
    assert "no adapter_config.json" in one_line(llama_folder, llama_folder)


def test_an_adapter_is_no_model_and_does_not_hide_inside_one(llama_folder, adapter, copied):
    with pytest.raises(SaelabError, match="adapter, not a model"):
        load(adapter[0], None)
    shutil.copytree(llama_folder, copied, dirs_exist_ok=True)
    with pytest.raises(SaelabError, match="in one folder"):
        load(copied, None)


def test_without_peft_one_line_says_what_to_install(llama_folder, adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'saelab[adapters]'" in one_line(llama_folder, adapter[0])
    assert load(llama_folder, None).identity.adapter is None


def test_loading_an_adapter_prints_nothing(llama_folder, adapter, capfd, recwarn):
    load(llama_folder, adapter[0])
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn if "adapter" in str(w.message)] == []


def test_a_hub_adapter_is_loaded_from_its_snapshot(llama_folder, adapter, monkeypatch):
    asked = []

    def download(name, **options):
        asked.append((name, options["allow_patterns"]))
        return str(adapter[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    identity = load(llama_folder, "someone/pirate").identity
    assert identity.adapter == load(llama_folder, adapter[0]).identity.adapter.replace(
        "pirate:", "someone/pirate:"
    )
    assert asked == [("someone/pirate", ["adapter_config.json", "adapter_model.safetensors"])]
