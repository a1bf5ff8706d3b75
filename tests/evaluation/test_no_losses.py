"""A model that reads in both directions has reconstruction metrics, and no next-token loss."""

import json

import pytest
import torch
from run_helpers import SMALL, evaluate
from tiny import byte_tokenizer

from saelab import api
from saelab.activations.cache import cache_activations
from saelab.activations.spec import CacheConfig
from saelab.lm.load import load_model
from saelab.lm.spec import ModelSpec
from saelab.text.spec import TextSpec

HOOK = "blocks.1.hook_resid_post"
LOSSES = ("ce_clean", "ce_spliced", "ce_zero_ablation", "ce_recovered_zero", "ce_recovered_mean", "kl")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny BERT and a text of short documents."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    texts = [f"def add{n}(first, second):\n    return first + {n}\n" for n in range(60)]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder / "bert")
    special = {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    byte_tokenizer(texts[0], 300, model_max_length=32, **special).save_pretrained(folder / "bert")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    text = TextSpec(source=str(folder / "text.jsonl"), heldout_share=0.3)
    return load_model(ModelSpec(name=str(folder / "bert"), device="cpu")), text


@pytest.mark.parametrize("how", ["store", "live"])
def test_reconstruction_is_measured_and_losses_are_undefined_with_the_models_reason(bert, how, tmp_path):
    lm, text = bert
    reading = {"context": 24, "packing": "document", "dtype": "float32"}
    if how == "live":
        source = api.live(lm, text, at=HOOK, pool_rows=512, **reading)
    else:
        config = CacheConfig(model=lm.spec, text=text, at=(HOOK,), tokens=1_000, **reading)
        source = cache_activations(config, tmp_path / "store", progress=False, lm=lm)
    api.train(source, out=tmp_path / "run", width=32, recipe_options={"k": 4}, **SMALL)
    (record,) = evaluate([tmp_path / "run"])
    assert record["n_tokens"] > 100 and 0 < record["fvu"] < 1 and record["l0"] == 4
    assert [record[name] for name in LOSSES] == [None] * len(LOSSES)
    assert {record["undefined"][name] for name in LOSSES} == {
        "bert does not predict the next token of a text"
    }
    (given,) = evaluate([tmp_path / "run"], text=text.source)
    assert given["fvu"] is not None and given["kl"] is None
