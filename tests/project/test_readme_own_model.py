"""The README's section "Your own model", run as it stands on folders made here."""

import json
import random
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer

from saelab.cli.main import run
from saelab.storage.files import read_json
from saelab.storage.inspect import verify_folder

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = re.search(r"^## Your own model\n(.*?)^## ", README, re.DOTALL | re.MULTILINE).group(1)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}[{{ turn['role'] }}] {{ turn['content'] }}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model, a fine-tune of it, texts, chats and activations, as the section names them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    home = tmp_path_factory.mktemp("home")
    tokenizer = byte_tokenizer("words of a language that says little\n", 300, chat_template=CHAT_TEMPLATE)
    torch.manual_seed(0)
    shape = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **shape)
    model = GPT2LMHeadModel(config)
    for name in ("mine", "tuned"):
        model.save_pretrained(home / "models" / name)
        tokenizer.save_pretrained(home / "models" / name)
        with torch.no_grad():
            model.transformer.h[0].mlp.c_fc.weight += 0.01
    choose = random.Random(0)
    words = ["words", "of", "a", "language", "that", "says", "little"]
    texts = [" ".join(choose.choices(words, k=choose.randint(20, 120))) for _ in range(300)]
    (home / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    chats = [
        {
            "topic": f"topic {number % 3}",
            "messages": [
                {"role": "user", "content": text[:20]},
                {"role": "assistant", "content": text[20:50]},
            ],
        }
        for number, text in enumerate(texts)
    ]
    (home / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    np.save(home / "activations.npy", np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32))
    return home


@pytest.fixture(scope="module")
def done(home):
    """Every command of the section, run once, in order."""
    commands = [
        line
        for block in re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
        for line in block.splitlines()
        if line.strip()
    ]
    assert len(commands) == 11
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for command in commands:
            _, *arguments = shlex.split(command)
            assert run(arguments) == 0, command
    return home


def test_the_commands_of_the_section_do_what_it_says(done):
    group = read_json(done / "runs" / "grid" / "group.json")
    assert len(group["members"]) == 8, "two hookpoints, two k, two widths"
    assert all((done / "runs" / "grid" / name / "evaluations").is_dir() for name in group["members"])
    live = read_json(done / "runs" / "live" / "config.json")
    assert (live["tokens"], live["extended_from"]) == (60_000, [40_000])
    assert (done / "runs" / "live" / "lengths" / "tokens-40000" / "manifest.json").exists()
    tuned = read_json(done / "runs" / "tuned" / "manifest.json")["content"]["init_from"]
    assert tuned["model_mismatch"]["sae_model"] == "mine"
    assert tuned["model_mismatch"]["model"] == "tuned"
    assert verify_folder(done / "runs").problems == []


def test_the_fine_tune_is_refused_without_the_flag(done, monkeypatch, capsys):
    monkeypatch.chdir(done)
    command = next(line for line in SECTION.splitlines() if "--allow-model-mismatch" in line)
    arguments = shlex.split(command.replace("--allow-model-mismatch", "").replace("runs/tuned", "runs/no"))[
        1:
    ]
    assert run(arguments) == 2
    assert "--allow-model-mismatch" in capsys.readouterr().err
    assert not (done / "runs" / "no").exists()


def test_conversations_keep_their_roles_and_columns(done):
    from saelab.activations.store import Store

    store = Store.open(done / "runs" / "chats")
    assert store.roles is not None
    assert set(store.documents["topic"].to_pylist()) <= {"topic 0", "topic 1", "topic 2"}


def test_a_module_that_reads_no_tokens_serves(home, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    monkeypatch.chdir(home)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["run"].sae().W_dec.shape == (64, 16)
