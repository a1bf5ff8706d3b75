"""Models that accelerate holds: on one device, spread over several, or with weights kept elsewhere."""

import sys

import pytest
import torch

from saelab.errors import SaelabError, UsageError
from saelab.lm.identity import hash_module
from saelab.lm.load import LanguageModel, load_model
from saelab.lm.run import capture, final_hidden, unembedding
from saelab.lm.spec import ModelSpec


def load(folder, device="cpu", **more):
    return load_model(ModelSpec(name=str(folder), device=device, **more))


def test_a_device_map_needs_accelerate_and_gives_the_same_activations(llama_folder, monkeypatch):
    spread = load_model(ModelSpec(name=str(llama_folder), device_map="auto"))
    plain = load(llama_folder)
    ids = torch.randint(1, 250, (2, 9))
    place = plain.hookpoints[-1]
    torch.testing.assert_close(
        capture(spread, ids, [place])[place].cpu(), capture(plain, ids, [place])[place]
    )
    assert spread.identity.hash == plain.identity.hash
    with pytest.raises(UsageError, match="leave out device cpu"):
        load(llama_folder, device_map="auto")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(SaelabError, match="pip install accelerate"):
        load_model(ModelSpec(name=str(llama_folder), device_map="balanced"))


@pytest.fixture
def offloaded(lm, folders, monkeypatch):
    """The weights of every module are elsewhere and come to the CPU for the time of its call."""
    import accelerate

    def load_and_offload(*_):
        model = type(lm.hf).from_pretrained(folders[lm.hf.config.model_type])
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))

    monkeypatch.setattr("saelab.lm.load.load_weights", load_and_offload)
    return load(folders[lm.hf.config.model_type], device="auto", device_map="auto")


def test_offloaded_weights_give_the_same_activations_and_no_losses(lm, offloaded, ids):
    assert all(p.is_meta for p in offloaded.module.parameters())
    assert offloaded.device == torch.device("cpu")
    assert (offloaded.hookpoints, offloaded.causal) == (lm.hookpoints, True)
    places = [hookpoint for hookpoint in lm.hookpoints if hookpoint.alias]
    ours, theirs = capture(offloaded, ids, places), capture(lm, ids, places)
    assert all(torch.equal(ours[place], theirs[place]) for place in places)
    assert torch.equal(final_hidden(offloaded, ids), final_hidden(lm, ids))
    with pytest.raises(SaelabError, match="off its devices"):
        unembedding(offloaded)


def test_a_module_whose_weights_are_elsewhere_has_no_identity(offloaded):
    with pytest.raises(SaelabError, match="not in memory"):
        hash_module(offloaded.module)
    with pytest.raises(SaelabError, match="not in memory"):
        LanguageModel.from_module(offloaded.module, name="away")
