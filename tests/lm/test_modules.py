"""Any module in Python: one that reads tokens as a LanguageModel, all others by their activations."""

import copy

import pytest
import torch
from torch import nn

from saelab.errors import SaelabError, UsageError
from saelab.lm.hooks import resolve
from saelab.lm.identity import hash_module
from saelab.lm.load import LanguageModel, load_model
from saelab.lm.modules import iter_activations
from saelab.lm.probe import batch_hookpoints
from saelab.lm.run import capture, edited, unembedding
from saelab.lm.spec import ModelSpec


class TinyReader(nn.Module):
    """Attention in one direction or both, under names of its own, with no idea of transformers."""

    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.words = nn.Embedding(300, 12)
        self.query_key_value = nn.Linear(12, 36)
        self.out = nn.Linear(12, 12)
        self.head = nn.Linear(12, 300)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        q, k, v = self.query_key_value(x).split(12, dim=-1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.head(x + self.out(mixed))


def mlp():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).eval()


def reader(causal=True):
    torch.manual_seed(1)
    return TinyReader(causal).eval()


@pytest.fixture
def tokenizer(llama_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llama_folder)


def only(batch):
    (x,) = batch.activations.values()
    return x


def test_a_module_of_ones_own_is_read_and_edited_like_any_model(tokenizer):
    lm = LanguageModel.from_module(reader(), tokenizer, name="mine", context=16)
    assert (lm.causal, lm.context, lm.n_layers, lm.identity.attention) == (True, 16, None, "own")
    ids = torch.randint(0, 300, (3, 9))
    out = resolve("out.output", lm.hookpoints)
    places = [resolve("words.output", lm.hookpoints), out]
    seen = capture(lm, ids, places)
    assert torch.equal(seen[places[0]], lm.module.words(ids).detach())
    with edited(lm, {out: torch.zeros_like}), torch.no_grad():
        torch.testing.assert_close(lm.module(ids), lm.module.head(lm.module.words(ids)))
    with pytest.raises(UsageError, match="at most 16"):
        capture(lm, torch.zeros(1, 17, dtype=torch.int64), places)
    with pytest.raises(SaelabError, match="cannot compute its losses"):
        unembedding(lm)
    with pytest.raises(SaelabError, match="no transformers model"):
        lm.hf  # noqa: B018


def test_whether_it_reads_both_ways_is_found_by_trying(tokenizer):
    lm = LanguageModel.from_module(reader(causal=False), tokenizer, name="both")
    assert not lm.causal
    real = torch.tensor([[True, True, False]])
    with pytest.raises(UsageError, match="no attention_mask"):
        capture(lm, torch.zeros(1, 3, dtype=torch.int64), lm.hookpoints[:1], lm.mask_for(real))


def test_a_module_of_ones_own_is_cached(tokenizer, tmp_path):
    from saelab.activations.cache import cache_activations
    from saelab.activations.spec import CacheConfig
    from saelab.storage.tensors import read_tensors
    from saelab.text.spec import TextSpec

    text = tmp_path / "text.txt"
    text.write_text("def add(first, second):\n    return first + second\n" * 3)
    lm = LanguageModel.from_module(reader(), tokenizer, name="mine", context=64)
    config = CacheConfig(
        model=lm.spec,
        text=TextSpec(source=str(text)),
        at=("out.output",),
        tokens=20,
        context=64,
        dtype="float32",
    )
    store = cache_activations(config, tmp_path / "store", lm=lm, progress=False)
    (shard,) = (tmp_path / "store").glob("hooks/*/shard-*.safetensors")
    ids = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    row = torch.tensor([[tokenizer.bos_token_id, *ids]])[:, :64]
    place = resolve("out.output", lm.hookpoints)
    expected = capture(lm, row, [place])[place][0, 1:21]
    torch.testing.assert_close(read_tensors(shard)["activations"], expected, rtol=1e-5, atol=1e-6)
    assert store.model_identity == lm.identity
    with pytest.raises(SaelabError, match="module in Python") as caught:
        load_model(store.model_spec())
    assert "\n" not in str(caught.value)


def test_a_transformers_model_in_memory_has_its_losses(lm):
    taken = LanguageModel.from_module(lm.hf, lm.tokenizer, name="taken")
    assert taken.hookpoints == lm.hookpoints
    assert taken.unembedding is not None
    assert (taken.context, taken.n_layers, taken.causal) == (lm.context, lm.n_layers, True)
    assert taken.identity.name == "module:taken"


def test_the_identity_follows_state_classes_and_settings_and_nothing_else():
    model = mlp()
    original = hash_module(model)
    assert hash_module(mlp()) == hash_module(copy.deepcopy(model).requires_grad_(False)) == original
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6
    assert hash_module(model) != original
    model = mlp()
    model[1] = nn.GELU()
    assert hash_module(model) != original
    assert hash_module(mlp().half()) != original
    norms = [nn.Sequential(nn.LayerNorm(4, eps=eps)) for eps in (1e-5, 1e-6)]
    assert hash_module(norms[0]) != hash_module(norms[1])


def test_a_configuration_belongs_to_the_identity(lm):
    changed = copy.deepcopy(lm.hf)
    assert hash_module(changed) == hash_module(lm.hf)
    changed.config.rope_theta_of_a_variant = 3
    assert hash_module(changed) != hash_module(lm.hf)


def test_training_mode_is_refused(tokenizer):
    with pytest.raises(UsageError, match="training mode"):
        LanguageModel.from_module(reader().train(), tokenizer, name="x")
    with pytest.raises(UsageError, match="training mode"):
        list(iter_activations(mlp().train(), [torch.zeros(2, 5)], at=["0.output"]))


def test_activations_of_an_mlp_are_rows_of_examples():
    model = mlp()
    batches = [torch.randn(4, 5), torch.randn(3, 5)]
    found = list(iter_activations(model, iter(batches), at=["{0..1}.output", "2.input"]))
    assert [[h.module_path for h in batch.activations] for batch in found] == [
        ["0.output", "1.output", "2.input"]
    ] * 2
    for batch, x in zip(found, batches, strict=True):
        first, second, third = batch.activations.values()
        assert torch.equal(first, model[0](x).detach())
        assert torch.equal(second, model[1](first))
        assert torch.equal(third, second)
        assert not first.is_inference()
    assert [batch.example.tolist() for batch in found] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [batch.position.tolist() for batch in found] == [[0] * 4, [0] * 3]
    assert {hookpoint.d_in for hookpoint in found[0].activations} == {7}


def test_hookpoints_of_a_module_are_listed_from_an_example():
    listed = batch_hookpoints(mlp(), torch.zeros(2, 5))
    assert [(h.module_path, h.d_in) for h in listed] == [
        ("0.input", 5), ("0.output", 7), ("1.input", 7), ("1.output", 7), ("2.input", 7), ("2.output", 3),
    ]  # fmt: skip
    lm = LanguageModel.from_module(mlp(), name="mlp", example=torch.zeros(2, 5))
    assert list(lm.hookpoints) == listed
    assert not lm.reads_tokens


def test_the_forward_pass_stops_after_the_last_place():
    model, runs = mlp(), []
    model[2].register_forward_hook(lambda *_: runs.append(1))
    list(iter_activations(model, [torch.zeros(2, 5)] * 3, at=["1.output"]))
    assert len(runs) == 1  # the first batch, to find the hookpoints


def test_every_dimension_between_the_first_and_the_last_is_a_position():
    model = nn.Sequential(nn.Linear(6, 4)).eval()
    x = torch.randn(2, 3, 5, 6)
    (batch,) = iter_activations(model, [x], at=["0.output"])
    i = 1 * 15 + 2 * 5 + 4  # example 1, place (2, 4)
    assert torch.equal(only(batch)[i], model(x)[1, 2, 4])
    assert (batch.example[i], batch.position[i]) == (1, 2 * 5 + 4)


def test_maps_of_convolutions_are_read_with_their_channels_first():
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2)).eval()
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(UsageError, match=r"no hookpoint '0\.output'"):
        list(iter_activations(model, [x], at=["0.output"]))
    (batch,) = iter_activations(model, [x], at=["0.output", "1.output"], channel_dim=1)
    maps = model[0](x)
    first, second = batch.activations.values()
    assert first.shape == (2 * 16, 6)
    torch.testing.assert_close(first[16 + 9], maps[1, :, 2, 1])  # position 9 is row 2, column 1
    assert torch.equal(second, first.relu())


class TwoInputs(nn.Module):
    """Takes its arguments by name, pools over positions, and hands a tuple on."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 7)
        self.down = nn.Linear(7, 2)

    def forward(self, *, values, attention_mask, flag=False):
        h = self.up(values)
        return self.down((h * attention_mask[..., None]).sum(1)), flag


def test_arguments_by_name_and_padding():
    torch.manual_seed(0)
    model = TwoInputs().eval()
    values, mask = torch.randn(2, 4, 5), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    example = {"values": values, "attention_mask": mask, "flag": True}
    (batch,) = iter_activations(model, [example], at=["up.output"])
    assert torch.equal(only(batch), model.up(values)[mask.bool()])
    assert batch.example.tolist() == [0, 0, 1, 1, 1]
    assert batch.position.tolist() == [0, 1, 0, 1, 2]
    with pytest.raises(UsageError, match=r"up\.output 4, down\.output 1"):
        list(iter_activations(model, [example], at=["up.output", "down.output"]))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(0, 5), torch.tensor(1.0), {}, {"x": 1}, (torch.zeros(2, 5), 1)]
)
@pytest.mark.usefixtures("unchecked")
def test_batches_of_another_kind_are_refused(wrong):
    with pytest.raises(UsageError, match="a batch is a tensor"):
        list(iter_activations(mlp(), [wrong], at=["0.output"]))


def test_no_batches_give_nothing_and_unknown_places_are_named():
    assert list(iter_activations(mlp(), [], at=["nowhere"])) == []
    with pytest.raises(UsageError, match="nowhere"):
        list(iter_activations(mlp(), [torch.zeros(2, 5)], at=["nowhere"]))


def test_no_hook_is_left_behind_when_a_module_fails():
    model = mlp()
    with pytest.raises(RuntimeError):
        list(iter_activations(model, [torch.zeros(2, 4)], at=["0.output"]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_parts_on_other_devices_keep_their_activations_there():
    """The meta device stands in for a second one: what arises there must not be brought elsewhere."""

    class Elsewhere(nn.Module):
        def forward(self, x):
            return x.to("meta")

    model = nn.Sequential(nn.Linear(5, 7), Elsewhere()).eval()
    (batch,) = iter_activations(model, [torch.zeros(2, 5)], at=["0.output", "1.output"])
    assert [x.device.type for x in batch.activations.values()] == ["cpu", "meta"]


def test_inputs_go_to_the_device_of_the_input_embeddings():
    class Spread(TinyReader):
        def forward(self, tokens):
            return self.head(torch.zeros(*tokens.shape, 12)) if tokens.is_cpu else self.words(tokens)

    model = Spread().eval()
    model.words.to("meta")
    from saelab.lm.calls import call_with_tokens, input_device

    assert input_device(model).type == "meta"
    assert call_with_tokens(model, torch.zeros(1, 2, dtype=torch.int64)).is_meta


def test_the_specification_of_a_module_names_no_file():
    with pytest.raises(SaelabError, match="from_module"):
        load_model(ModelSpec(name="module:mine"))
