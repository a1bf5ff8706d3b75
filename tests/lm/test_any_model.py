"""Folders of any architecture: BERT, encoders without a head, vision, mixtures of experts, odd rotary embeddings."""

import json
from pathlib import Path

import pytest
import torch
from lm_helpers import CONTEXT, D_MODEL, tiny_config
from tiny import byte_tokenizer

from saelab.errors import SaelabError, UsageError
from saelab.lm.architecture import model_class
from saelab.lm.hooks import resolve, resolve_all
from saelab.lm.load import load_model
from saelab.lm.modules import iter_activations
from saelab.lm.probe import list_hookpoints
from saelab.lm.run import capture, edited, final_hidden, unembedding
from saelab.lm.spec import ModelSpec


def save(folder: Path, config, *, build=None, **special) -> ModelSpec:
    torch.manual_seed(5)
    (build or model_class(config))(config).save_pretrained(folder)
    byte_tokenizer("abc", 300, **special).save_pretrained(folder)
    return ModelSpec(name=str(folder), device="cpu")


def aliases(hookpoints):
    return {hookpoint.alias for hookpoint in hookpoints if hookpoint.alias}


def real_part(lengths, width):
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def test_bert_reads_both_ways_and_has_no_next_token_loss(bert):
    assert (bert.causal, bert.reads_tokens, bert.unembedding) == (False, True, None)
    assert (bert.context, bert.n_layers) == (CONTEXT, 3)
    with pytest.raises(SaelabError, match="does not predict the next token") as caught:
        unembedding(bert)
    assert "\n" not in str(caught.value)
    assert list_hookpoints(bert.spec) == list(bert.hookpoints)
    assert aliases(bert.hookpoints) >= {
        "blocks.0.hook_resid_pre",
        "blocks.2.hook_resid_post",
        "blocks.1.attn.hook_z",
    }
    # The modules around the unembedding hand on its logits, which are no activations.
    paths = {hookpoint.module_path for hookpoint in bert.hookpoints}
    assert not paths & {"cls.predictions.decoder.output", "cls.predictions.output", "cls.output"}


def test_padding_needs_a_mask_in_bert_and_then_changes_nothing(bert, ids_of):
    ids, lengths = ids_of(3, 20), [20, 12, 5]
    real = real_part(lengths, 20)
    places = resolve_all(["blocks.*.hook_resid_post", "blocks.*.hook_mlp_out"], bert.hookpoints)
    masked = capture(bert, ids, places, bert.mask_for(real))
    blind = capture(bert, ids, places)
    for row, length in enumerate(lengths):
        alone = capture(bert, ids[row : row + 1, :length], places)
        for place in places:
            torch.testing.assert_close(masked[place][row, :length], alone[place][0], rtol=1e-4, atol=1e-5)
        last = places[-1]
        is_same = torch.allclose(blind[last][row, :length], alone[last][0], atol=1e-3)
        assert is_same == (length == 20)
    assert bert.mask_for(real[:1]) is None


def test_a_causal_model_needs_no_mask(lm):
    assert lm.mask_for(real_part([3, 5], 5)) is None


def test_bert_can_be_edited(bert, ids_of):
    ids = ids_of(2, 8)
    first, last = (resolve(f"blocks.{layer}.hook_resid_post", bert.hookpoints) for layer in (0, 2))
    before = capture(bert, ids, [last])[last]
    with edited(bert, {first: lambda x: torch.cat([x[:, :-1], torch.sin(3 * x[:, -1:])], dim=1)}):
        after = capture(bert, ids, [last])[last]
    assert (before[:, 0] - after[:, 0]).abs().max() > 1e-3  # an edit of the last token reaches the first


def test_a_cache_of_bert_does_not_depend_on_padding(bert, tmp_path):
    from saelab.activations.cache import cache_activations
    from saelab.activations.spec import CacheConfig
    from saelab.text.spec import TextSpec

    text = tmp_path / "texts.jsonl"
    texts = ["def add(first, second): return first + second", "first = second", "x = 3  # y"]
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    rows = []
    for batch_rows in (1, 3):
        config = CacheConfig(
            model=bert.spec,
            text=TextSpec(source=str(text)),
            at=("blocks.1.hook_resid_post",),
            tokens=1000,
            context=24,
            packing="document",
            dtype="float32",
            batch_rows=batch_rows,
        )
        store = cache_activations(config, tmp_path / f"store-{batch_rows}", lm=bert, progress=False)
        rows.append(all_rows(store))
    assert rows[0].shape[0] > 20
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-4, atol=1e-5)


def all_rows(store):
    from saelab.storage.tensors import read_tensors

    shards = sorted(store.path.glob("hooks/*/shard-*.safetensors"))
    return torch.cat([read_tensors(shard)["activations"] for shard in shards])


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_model_without_a_head_has_the_names_of_the_one_with_it(folders, tmp_path, family):
    from transformers import AutoModel

    spec = ModelSpec(name=str(folders[family]), device="cpu")
    whole = load_model(spec)
    AutoModel.from_pretrained(folders[family]).save_pretrained(tmp_path)
    whole.tokenizer.save_pretrained(tmp_path)
    bare = load_model(ModelSpec(name=str(tmp_path), device="cpu"))
    assert aliases(bare.hookpoints) == aliases(whole.hookpoints)
    assert bare.causal == whole.causal
    assert bare.unembedding is None
    ids = torch.randint(1, 200, (2, 7))
    place, same = (resolve("blocks.1.hook_resid_post", m.hookpoints) for m in (bare, whole))
    assert torch.equal(capture(bare, ids, [place])[place], capture(whole, ids, [same])[same])
    with pytest.raises(SaelabError, match=r"unembedding|next token"):
        final_hidden(bare, ids)


@pytest.mark.parametrize(
    ("family", "expected"), [("llama", "LlamaForCausalLM"), ("bert", "BertForMaskedLM"), ("vit", "ViTModel")]
)
def test_a_configuration_that_names_no_class_gets_the_one_that_fits_its_type(family, expected):
    from transformers import ViTConfig

    config = ViTConfig() if family == "vit" else tiny_config(family)
    assert not config.architectures
    assert model_class(config).__name__ == expected
    config.architectures = ["SomethingOfAStranger", "torch"]
    assert model_class(config).__name__ == expected


def test_roberta_counts_positions_from_behind_its_padding_token(tmp_path):
    lm = load_model(save(tmp_path, tiny_config("roberta")))
    assert lm.context == CONTEXT - 2
    place = lm.hookpoints[-1]
    capture(lm, torch.full((1, CONTEXT - 2), 7), [place])
    with pytest.raises(UsageError, match="at most 30"):
        capture(lm, torch.full((1, CONTEXT - 1), 7), [place])


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rotary_embeddings_that_follow_the_length_are_listed_without_weights(tmp_path, rope_type):
    rope = {"rope_type": rope_type, "factor": 2.0, "rope_theta": 10000.0}
    if rope_type == "longrope":
        rope |= {"long_factor": [2.0] * 3, "short_factor": [1.0] * 3, "original_max_position_embeddings": 16}
    lm = load_model(save(tmp_path, tiny_config("llama", rope_parameters=rope)))
    assert list_hookpoints(lm.spec) == list(lm.hookpoints)
    assert lm.causal


@pytest.mark.parametrize("family", ["mixtral", "gemma3_text"])
def test_mixtures_and_mixed_attention_are_listed_without_weights(tmp_path, family):
    lm = load_model(save(tmp_path, tiny_config(family)))
    assert list_hookpoints(lm.spec) == list(lm.hookpoints)
    assert resolve("model.layers.2.output", lm.hookpoints).d_in == D_MODEL
    assert lm.causal


def test_a_model_with_encoder_and_decoder_is_refused_in_one_line(tmp_path):
    from transformers import T5Config

    config = T5Config(vocab_size=300, d_model=24, d_ff=40, num_layers=1, num_heads=4, d_kv=6)
    spec = save(tmp_path, config)
    for ask in (load_model, list_hookpoints):
        with pytest.raises(SaelabError, match="encoder and a decoder") as caught:
            ask(spec)
        assert "\n" not in str(caught.value)


def test_vision_models_have_hookpoints_and_no_tokens(vit_folder):
    lm = load_model(ModelSpec(name=str(vit_folder), device="cpu"))
    assert list_hookpoints(lm.spec) == list(lm.hookpoints)
    assert (lm.reads_tokens, lm.causal, lm.context, lm.n_layers) == (False, False, None, 2)
    assert lm.identity.tokenizer_hash == ""
    with pytest.raises(SaelabError, match="tiny-vit has no tokenizer"):
        lm.tokenizer  # noqa: B018
    with pytest.raises(UsageError, match="does not read tokens"):
        capture(lm, torch.zeros(1, 3, dtype=torch.int64), [lm.hookpoints[0]])
    with pytest.raises(SaelabError, match="next token"):
        unembedding(lm)


def test_activations_of_a_vision_model_are_its_hidden_states(vit_folder):
    lm = load_model(ModelSpec(name=str(vit_folder), device="cpu"))
    images = [torch.randn(4, 3, 8, 8), torch.randn(2, 3, 8, 8)]
    layers = [
        h.module_path for h in lm.hookpoints if h.module_path.endswith(("layers.0.output", "layer.0.output"))
    ]
    assert len(layers) == 1
    batches = ({"pixel_values": x} for x in images)
    found = list(iter_activations(lm.module, batches, at=layers))
    with torch.no_grad():
        expected = [lm.module(pixel_values=x, output_hidden_states=True).hidden_states[1] for x in images]
    for batch, states in zip(found, expected, strict=True):
        (x,) = batch.activations.values()
        assert torch.equal(x, states.reshape(-1, D_MODEL))
    # A class token and 2 x 2 patches of each image.
    assert torch.equal(found[1].example, torch.tensor([4] * 5 + [5] * 5))
    assert torch.equal(found[1].position, torch.arange(5).repeat(2))
    classes = found[0].keep(found[0].position == 0)
    assert torch.equal(next(iter(classes.activations.values())), expected[0][:, 0])
    assert classes.example.tolist() == [0, 1, 2, 3]


def test_a_model_of_images_and_text_is_read_on_text(tmp_path):
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    config = LlavaConfig(vision_config=vision, text_config=tiny_config("llama"), image_token_index=299)
    lm = load_model(save(tmp_path, config, build=LlavaForConditionalGeneration))
    assert (lm.n_layers, lm.context, lm.causal) == (3, CONTEXT, True)
    assert list_hookpoints(lm.spec) == list(lm.hookpoints)
    (place,) = resolve_all(["**.layers.1.output"], lm.hookpoints)
    assert capture(lm, torch.full((2, 5), 7), [place])[place].shape == (2, 5, D_MODEL)
    assert lm.unembedding is not None
