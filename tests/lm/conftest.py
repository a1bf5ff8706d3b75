"""Tiny models with random weights, saved as real folders: a Llama and a GPT-2, with one small tokenizer."""

from pathlib import Path

import pytest
import torch
from tiny import byte_tokenizer

from saelab.lm.load import LanguageModel, load_model
from saelab.lm.spec import ModelSpec

CONTEXT = 32


def save_tiny_model(folder: Path, family: str) -> Path:
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    wrapped = byte_tokenizer(
        "def add(first, second):\n    return first + second\n", 300, model_max_length=CONTEXT
    )
    torch.manual_seed(7)
    vocab_size = len(wrapped)
    if family == "llama":
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=True,
            initializer_range=0.3,  # large enough for activations and losses that differ between tokens
        )
        model = LlamaForCausalLM(config)
    else:
        config = GPT2Config(
            vocab_size=vocab_size,
            n_embd=24,
            n_layer=3,
            n_head=4,
            n_positions=CONTEXT,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.3,
        )
        model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: save_tiny_model(root / f"tiny-{family}", family) for family in ("llama", "gpt2")}


@pytest.fixture(scope="session")
def llama_folder(folders: dict[str, Path]) -> Path:
    return folders["llama"]


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest, folders: dict[str, Path]) -> LanguageModel:
    return load_model(ModelSpec(name=str(folders[request.param]), device="cpu"))


@pytest.fixture
def ids(lm: LanguageModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, len(lm.tokenizer), (3, 20), generator=generator)
