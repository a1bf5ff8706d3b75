"""A tiny Llama in a real folder, a small corpus, and configurations to cache one with the other."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from activation_helpers import RESID_0, RESID_1
from tiny import byte_tokenizer

from saelab.activations.cache import cache_activations
from saelab.activations.spec import CacheConfig
from saelab.lm.load import LanguageModel, load_model
from saelab.lm.spec import ModelSpec
from saelab.text.spec import TextSpec

CONTEXT = 16
D_MODEL = 12


@contextmanager
def one_thread() -> Iterator[None]:
    """Run small models on one thread: several threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def single_threaded() -> Iterator[None]:
    with one_thread():
        yield


def save_model(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer("some words of a small language\n", 280)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def lm(model_folder: Path) -> LanguageModel:
    return load_model(ModelSpec(name=str(model_folder), device="cpu"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of 5 to 60 words."""
    choose = random.Random(5)
    words = ["some", "words", "of", "a", "small", "language", "that", "says", "nothing"]
    path = tmp_path_factory.mktemp("text") / "corpus.jsonl"
    texts = (" ".join(choose.choices(words, k=choose.randint(5, 60))) for _ in range(40))
    path.write_text(
        "".join(json.dumps({"id": f"doc {i}", "text": text}) + "\n" for i, text in enumerate(texts))
    )
    return path


@pytest.fixture(scope="session")
def make_config(model_folder: Path, corpus: Path):
    """Return a maker of small configurations; options override the defaults."""

    def make(**options) -> CacheConfig:
        small = {
            "model": ModelSpec(name=str(model_folder), device="cpu"),
            "text": TextSpec(source=str(corpus), heldout_share=0.25),
            "at": (RESID_0,),
            "tokens": 600,
            "context": CONTEXT,
            "batch_rows": 4,
            "shard_rows": 200,
        }
        return CacheConfig(**(small | options))

    return make


@pytest.fixture(scope="session")
def make_store(lm, make_config):
    """Return a function that caches into a folder."""

    def make(out: Path, **options):
        return cache_activations(make_config(**options), out, progress=False, lm=lm)

    return make


@pytest.fixture(scope="session")
def store(make_store, tmp_path_factory):
    """Two hookpoints with gradients in full precision, shared by the tests that only read."""
    out = tmp_path_factory.mktemp("stores") / "shared"
    with one_thread():
        return make_store(out, at=(RESID_0, RESID_1), dtype="float32", gradients=True)
