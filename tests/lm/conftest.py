"""Tiny models with random weights, saved as real folders, the text models with one small tokenizer."""

from pathlib import Path

import pytest
import torch
from lm_helpers import CONTEXT, tiny_config
from tiny import byte_tokenizer

from saelab.lm.architecture import model_class
from saelab.lm.load import LanguageModel, load_model
from saelab.lm.spec import ModelSpec

CAUSAL = ["llama", "gpt2", "gpt_neox"]


def save_tiny_model(folder: Path, family: str) -> Path:
    torch.manual_seed(7)
    config = tiny_config(family)
    model_class(config)(config).save_pretrained(folder)
    special = {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"} if family == "bert" else {}
    text = "def add(first, second):\n    return first + second\n"
    byte_tokenizer(text, 300, model_max_length=CONTEXT, **special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: save_tiny_model(root / f"tiny-{family}", family) for family in (*CAUSAL, "bert")}


@pytest.fixture(scope="session")
def llama_folder(folders: dict[str, Path]) -> Path:
    return folders["llama"]


@pytest.fixture(scope="session", params=CAUSAL)
def lm(request: pytest.FixtureRequest, folders: dict[str, Path]) -> LanguageModel:
    return load_model(ModelSpec(name=str(folders[request.param]), device="cpu"))


@pytest.fixture(scope="session")
def bert(folders: dict[str, Path]) -> LanguageModel:
    return load_model(ModelSpec(name=str(folders["bert"]), device="cpu"))


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(7)
    config = ViTConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("vision") / "tiny-vit"
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def ids(lm: LanguageModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, len(lm.tokenizer), (3, 20), generator=generator)


@pytest.fixture
def ids_of():
    def random_ids(rows: int, length: int) -> torch.Tensor:
        return torch.randint(1, 200, (rows, length), generator=torch.Generator().manual_seed(rows + length))

    return random_ids
