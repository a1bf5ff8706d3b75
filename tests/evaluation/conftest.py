"""A small model with a massive first token, stores of its activations, and SAEs with known answers."""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from run_helpers import SMALL, text_of

from saelab import api
from saelab.activations.cache import cache_activations
from saelab.activations.spec import CacheConfig
from saelab.activations.store import Store
from saelab.evaluation import sources
from saelab.lm.load import LanguageModel, load_model
from saelab.lm.spec import ModelSpec
from saelab.sae.autoencoder import Reconstruction
from saelab.sae.config import Normalisation, SAEConfig
from saelab.text.spec import TextSpec
from saelab.training.grid import Grid
from saelab_kernels.code import SparseCode

HOOK = "model.layers.0.output"
D = 32
BOS_NORM = 1000.0
SYLLABLES = ("ka", "mi", "to", "re", "su", "lo", "na", "vi")
WORDS = [first + second for first in SYLLABLES for second in SYLLABLES]


def write_text(path: Path, n_documents: int) -> None:
    """Write documents whose next word follows from the last one most of the time."""
    chance = random.Random(0)
    with path.open("w") as file:
        for index in range(n_documents):
            words, at = [], chance.randrange(len(WORDS))
            for _ in range(chance.randrange(20, 60)):
                at = chance.randrange(len(WORDS)) if chance.random() < 0.15 else (13 * at + 3) % len(WORDS)
                words.append(WORDS[at])
            file.write(json.dumps({"id": f"doc {index}", "text": " ".join(words) + "\n"}) + "\n")


def make_tokenizer(path: Path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>"), texts


def make_model(folder: Path, text: Path) -> None:
    """Save a tiny random Llama whose unembedding is fitted to the text and whose BOS embedding is massive.

    Fitting the last layer alone is convex and quick, and gives a model that every ablation damages.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer, texts = make_tokenizer(text)
    bos = tokenizer.bos_token_id
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=D,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            bos_token_id=bos,
            eos_token_id=bos,
            initializer_range=0.1,
        )
    )
    stream = [token for document in texts for token in [bos, *tokenizer(document)["input_ids"]]]
    rows = torch.tensor(stream[: len(stream) // 47 * 47]).reshape(-1, 47)
    rows = torch.cat([torch.full((len(rows), 1), bos), rows], dim=1)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
        model.model.embed_tokens.weight[bos] = BOS_NORM / D**0.5
        # Attention sinks matter in real models: here every token reads BOS strongly.
        model.model.layers[1].self_attn.o_proj.weight *= 4
        hidden = model.model(rows[:, :-1]).last_hidden_state.reshape(-1, D)
    weight = torch.zeros(len(tokenizer), D, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=25, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(hidden @ weight.T, rows[:, 1:].reshape(-1))
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        model.lm_head.weight.copy_(weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class World:
    """One model and the stores of its activations."""

    lm: LanguageModel
    masked: Store
    """BOS has no activation rows."""
    unmasked: Store
    """BOS has activation rows: the mistake that must show."""


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("evaluation")
    text = folder / "text.jsonl"
    write_text(text, 120)
    make_model(folder / "model", text)
    spec = ModelSpec(name=str(folder / "model"), device="cpu")
    lm = load_model(spec)

    def store(name: str, mask_bos: bool) -> Store:
        config = CacheConfig(
            model=spec,
            text=TextSpec(source=str(text), heldout_share=0.5),
            at=(HOOK,),
            tokens=3_000,
            context=48,
            dtype="float32",
            mask_bos=mask_bos,
        )
        return cache_activations(config, folder / name, progress=False, lm=lm)

    return World(lm, store("masked", True), store("unmasked", False))


class KnownSAE:
    """Reconstructs by a given function; its code is the positive and the negative part of that output."""

    def __init__(self, function, d, model_identity, hook=HOOK):
        self.function = function
        self.W_dec = torch.cat([torch.eye(d), -torch.eye(d)])
        self.config = SAEConfig(
            recipe="known",
            d_in=d,
            d_out=d,
            d_sae=2 * d,
            input_hooks=(hook,),
            input_widths=(d,),
            output_hooks=(hook,),
            output_widths=(d,),
            hook_aliases=(),
            input_normalisation=Normalisation(),
            target_normalisation=Normalisation(),
            apply_b_dec_to_input=False,
            has_skip=False,
            inference={"name": "per_token", "k": d},
            attribution=None,
            units="",
            model_identity=model_identity,
            model_name="",
            source_identity="",
            tokenizer_hash="",
        )

    def encode(self, x):
        x_hat = self.function(x)
        return SparseCode.from_dense(torch.cat([x_hat.relu(), (-x_hat).relu()], dim=1))

    def reconstruct(self, x):
        return Reconstruction(self.function(x), self.encode(x))


@pytest.fixture
def known_sae():
    """Return a maker of SAEs whose reconstruction is a given function of x."""

    def make(function, store, d=D, hook=HOOK):
        return KnownSAE(function, d, store.model_identity.hash if store.model_identity else "", hook)

    return make


@pytest.fixture(scope="session")
def trained(world, tmp_path_factory):
    """A group of two on the masked store, a run on the unmasked one, and a run that was trained live."""
    folder = tmp_path_factory.mktemp("trained")
    grid = Grid(widths=(32, 48), recipe_options={"topk": {"k": 4}})
    api.train_grid(world.masked, grid, out=folder / "group", **SMALL)
    options = {"width": 40, "recipe_options": {"k": 4}} | SMALL
    api.train(world.unmasked, out=folder / "alone", **options)
    text = TextSpec(source=text_of(world), heldout_share=0.5)
    live = api.live(world.lm, text, at=HOOK, context=48, pool_rows=512)
    api.train(live, out=folder / "live", **options)
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """Return a function that copies a run or group, so that a test may change it."""

    def make(name):
        # Without the records that other tests have left there.
        shutil.copytree(trained / name, tmp_path / name, ignore=lambda *_: ["evaluations"])
        return tmp_path / name

    return make


@pytest.fixture
def loads(world, monkeypatch):
    """Count which models are loaded."""
    found = []

    def load(spec):
        found.append(spec)
        return world.lm if spec.name == world.lm.spec.name else load_model(spec)

    monkeypatch.setattr(sources, "load_model", load)
    return found
