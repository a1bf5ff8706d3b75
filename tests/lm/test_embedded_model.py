"""The model that is shipped: whole, small, offline, a language model of Python, and one that shows induction."""

import json
import re
import socket
from pathlib import Path

import pytest
import torch

from saelab.lm.bridge import to_bridge
from saelab.lm.embedded import model_folder
from saelab.lm.hooks import resolve
from saelab.lm.load import load_model
from saelab.lm.losses import next_token_losses
from saelab.lm.run import capture, final_hidden, unembedding
from saelab.lm.spec import ModelSpec
from saelab.text.stdlib import stdlib_documents


@pytest.fixture(scope="module")
def lm():
    return load_model(ModelSpec(device="cpu"))


@pytest.fixture(scope="module")
def record():
    return json.loads((model_folder() / "scores.json").read_text())


def losses(lm, rows):
    """Next-token loss `[rows, length - 1]` through the project's own path."""
    hidden = final_hidden(lm, rows)[:, :-1]
    return next_token_losses(
        hidden.reshape(-1, hidden.shape[-1]), unembedding(lm), rows[:, 1:].reshape(-1)
    ).view(len(rows), -1)


def heldout_rows(lm, n):
    ids = []
    for document in stdlib_documents():
        if document.split == "heldout":
            ids += [
                lm.tokenizer.bos_token_id,
                *lm.tokenizer(document.text, add_special_tokens=False)["input_ids"],
            ]
    rows = torch.tensor(ids[: n * 255]).view(n, 255)
    return torch.cat([torch.zeros(n, 1, dtype=torch.int64), rows], dim=1)


def test_the_folder_is_at_most_12_mb_and_loads_without_the_network(monkeypatch):
    assert sum(path.stat().st_size for path in model_folder().iterdir()) <= 12e6

    def refuse(*arguments):
        raise AssertionError("a network connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    lm = load_model(ModelSpec(device="cpu"))
    assert lm.n_layers == 4
    assert to_bridge(lm).cfg.d_model == 256


def test_its_loss_on_heldout_files_is_what_its_record_says(lm, record):
    rows = heldout_rows(lm, 64)
    found = losses(lm, rows)[rows[:, 1:] != lm.tokenizer.bos_token_id].mean().item()
    # Another Python version or build has another standard library, and this is a part of it.
    assert found == pytest.approx(record["scores"]["heldout_nats_per_token"], abs=0.4)


def test_it_repeats_random_tokens(lm, record):
    generator = torch.Generator().manual_seed(3)
    half = torch.randint(1, 4096, (16, 127), generator=generator)
    rows = torch.cat([torch.zeros(16, 1, dtype=torch.int64), half, half], dim=1)
    found = losses(lm, rows)
    first, second = found[:, :127].mean().item(), found[:, 128:].mean().item()
    assert second < 0.5 * first
    assert first == pytest.approx(record["scores"]["random_first_copy_nats"], rel=0.05)
    assert second == pytest.approx(record["scores"]["random_second_copy_nats"], rel=0.15)


def test_it_completes_python(lm):
    prompt = "class Point:\n    def __init__(self, x, y):\n        self.x ="
    ids = torch.tensor([[0, *lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
    after = lm.tokenizer.decode(lm.hf(ids).logits[0, -1].argmax().item())
    assert after == " x"


def test_the_bridge_and_the_plain_path_agree_on_its_activations(lm):
    rows = heldout_rows(lm, 2)
    bridge = to_bridge(lm)
    for name in ("blocks.0.hook_mlp_out", "blocks.2.hook_resid_post", "blocks.3.hook_attn_out"):
        hookpoint = resolve(name, lm.hookpoints)
        ours = capture(lm, rows, [hookpoint])[hookpoint]
        _, cache = bridge.run_with_cache(rows, names_filter=name)
        torch.testing.assert_close(ours, cache[name], rtol=1e-5, atol=1e-5 * ours.abs().max().item())


def test_the_readme_states_the_scores_of_the_record(record):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    table = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", readme, re.MULTILINE))
    scores, facts = record["scores"], record["facts"]
    assert table["parameters"] == f"{facts['parameters']:,}"
    assert table["training tokens"] == f"{facts['training_tokens']:,}"
    assert table["held-out bits per byte"] == f"{scores['heldout_bits_per_byte']:.3f}"
    assert table["held-out nats per token"] == f"{scores['heldout_nats_per_token']:.3f}"
    first, second = scores["random_first_copy_nats"], scores["random_second_copy_nats"]
    assert table["random tokens, first copy / second copy"] == f"{first:.2f} / {second:.2f} nats per token"
    assert table["right guesses in the second copy"] == f"{scores['random_second_copy_accuracy']:.1%}"
