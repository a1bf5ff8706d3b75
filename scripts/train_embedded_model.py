"""Train the language model that is shipped inside the package, on the running interpreter's standard library.

    python scripts/train_embedded_model.py --out build/embedded --tokens 18M

1. Read the standard library with its test suite, held-out files set aside by the hash of their path.
2. Train a byte-level BPE tokenizer on the training files.
3. Train a small Llama-style model: rows of `<|endoftext|>` and 255 tokens of text, half of them
   from the library and half from its (larger, more repetitive) tests; one row of sixteen repeats a
   span of itself, shuffled half the time, so that induction forms early in so small a model.
4. Save a Hugging Face folder (float16 safetensors, JSON) with the measured scores in `scores.json`.

The learning rate is constant after a short warm-up and falls linearly over the last part, so that
a run can be continued from its last checkpoint with a larger `--tokens` before the decay begins.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saelab.storage.tensors import TensorFile, write_tensors
from saelab.text.documents import Document
from saelab.text.stdlib import is_test_file, stdlib_documents

BOS = "<|endoftext|>"
CHECKPOINT_EVERY = 250
"""Steps between checkpoints."""
Report = Callable[[int, float, float], None]
BOS_ID = 0  # the first special token that the trainer is given
# Indentation stays one piece, digits stand alone, words keep their leading space.
PIECES = r"\n[ ]*|'s|[ ]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the shipped model was trained with."""

    vocab_size: int = 4096
    context: int = 256
    n_layers: int = 4
    d_model: int = 256
    n_heads: int = 8
    batch_rows: int = 16
    tokens: int = 18_000_000
    lr_matrices: float = 4e-3
    """Learning rate of Muon on the hidden matrices (scaled to match AdamW's update size)."""
    lr_rest: float = 1.5e-3
    """Learning rate of AdamW on embeddings and norms."""
    weight_decay: float = 0.1
    warmup_tokens: int = 200_000
    decay_share: float = 0.3
    core_share: float = 0.5
    """Share of rows from the library itself; the rest comes from its tests."""
    repeat_every: int = 16
    """One row of so many repeats a span of itself."""
    seed: int = 0


def train_tokenizer(documents: list[Document], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; any text survives encoding and decoding unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=24,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[Document]) -> torch.Tensor:
    """Join documents into one stream of token ids, each behind a BOS."""
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch([document.text for document in documents]):
        ids.append(BOS_ID)
        ids.extend(encoding.ids)
    return torch.tensor(ids, dtype=torch.int64)


class Rows:
    """Random training rows `[batch_rows, context + 1]`; the order depends on the seed and the step alone."""

    def __init__(self, core: torch.Tensor, tests: torch.Tensor, settings: Settings) -> None:
        self.core, self.tests, self.settings = core, tests, settings

    def at(self, step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
        return torch.stack([self._row(index, generator) for index in range(self.settings.batch_rows)])

    def _row(self, index: int, generator: torch.Generator) -> torch.Tensor:
        take_core = torch.rand((), generator=generator).item() < self.settings.core_share
        stream = self.core if take_core or len(self.tests) <= self.settings.context else self.tests
        start = int(torch.randint(0, len(stream) - self.settings.context, (), generator=generator))
        row = torch.cat([torch.zeros(1, dtype=torch.int64), stream[start : start + self.settings.context]])
        if index % self.settings.repeat_every == 0:
            row = self._repeat_a_span(row, generator)
        return row

    def _repeat_a_span(self, row: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        length = int(torch.randint(16, self.settings.context // 2 + 1, (), generator=generator))
        span = row[1 : 1 + length]
        if torch.rand((), generator=generator).item() < 0.5:
            span = span[torch.randperm(length, generator=generator)]
        repeats = -(-(len(row) - 1) // length)
        return torch.cat([row[:1], span.repeat(repeats)[: len(row) - 1]])


def make_model(settings: Settings) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.d_model,
        intermediate_size=settings.d_model * 8 // 3 // 32 * 32,
        num_hidden_layers=settings.n_layers,
        num_attention_heads=settings.n_heads,
        num_key_value_heads=settings.n_heads,
        max_position_embeddings=settings.context,
        bos_token_id=BOS_ID,
        eos_token_id=BOS_ID,
        tie_word_embeddings=True,
        use_cache=False,
    )
    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(config)


def make_optimisers(model: LlamaForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    hidden = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            hidden,
            lr=settings.lr_matrices,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=settings.lr_rest, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def lr_factor(tokens: int, settings: Settings) -> float:
    """Linear warm-up, constant, linear decay to 2 % of the peak."""
    if tokens < settings.warmup_tokens:
        return tokens / settings.warmup_tokens
    return max(0.02, min(1.0, (1.0 - tokens / settings.tokens) / settings.decay_share))


@torch.no_grad()
def scores(
    model: LlamaForCausalLM, heldout: torch.Tensor, bytes_per_token: float, rows: int, context: int
) -> dict:
    """Held-out loss, bits per byte, and induction on repeated uniformly random tokens."""
    model.eval()
    device = model.device
    n_rows = min(rows, (len(heldout) - 1) // context)
    windows = heldout[: n_rows * context].view(n_rows, context)
    windows = torch.cat([torch.zeros(n_rows, 1, dtype=torch.int64), windows], dim=1)
    losses = torch.cat([next_token_loss(model, chunk.to(device)).cpu() for chunk in windows.split(16)])
    predicted_text = windows[:, 1:] != 0  # the loss of guessing where a document ends says nothing about text
    nats = losses[predicted_text].mean().item()

    generator = torch.Generator().manual_seed(3)
    half = (context - 1) // 2
    random = torch.randint(1, model.config.vocab_size, (32, half), generator=generator)
    repeated = torch.cat([torch.zeros(32, 1, dtype=torch.int64), random, random], dim=1).to(device)
    repeat_losses = next_token_loss(model, repeated).cpu()
    guesses = model(repeated[:, :-1]).logits.argmax(-1)
    model.train()
    return {
        "heldout_nats_per_token": nats,
        "heldout_bits_per_byte": nats / math.log(2) / bytes_per_token,
        "heldout_tokens": int(predicted_text.sum()),
        "random_first_copy_nats": repeat_losses[:, :half].mean().item(),
        "random_second_copy_nats": repeat_losses[:, half + 1 :].mean().item(),
        "random_second_copy_accuracy": (guesses == repeated[:, 1:])[:, half + 1 :].float().mean().item(),
    }


def next_token_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Cross entropy in nats of every next token, `[rows, length - 1]`, float32."""
    with torch.autocast(rows.device.type, dtype=torch.bfloat16):
        logits = model(rows[:, :-1]).logits
    losses = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    return losses.view(len(rows), -1)


def save_checkpoint(
    path: Path, model: LlamaForCausalLM, optimisers: list[torch.optim.Optimizer], step: int
) -> None:
    """Write weights and the optimisers' moments; the learning rates follow from the step."""
    tensors: dict[str, torch.Tensor] = {f"model.{n}": p for n, p in model.named_parameters()}
    for number, optimiser in enumerate(optimisers):
        for index, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{index}.{key}": torch.as_tensor(v) for key, v in moments.items()}
    write_tensors(path, tensors, {"step": str(step)})


def load_checkpoint(path: Path, model: LlamaForCausalLM, optimisers: list[torch.optim.Optimizer]) -> int:
    """Continue from a checkpoint; returns the steps that were done."""
    with TensorFile(path) as file:
        tensors, step = {name: file.read(name) for name in file.names}, int(file.metadata["step"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for number, optimiser in enumerate(optimisers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimiser" and rest.startswith(f"{number}."):
                _, index, key = rest.split(".")
                state.setdefault(int(index), {})[key] = tensor
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return step


def train(model: LlamaForCausalLM, rows: Rows, settings: Settings, checkpoint: Path, report: Report) -> None:
    """Train to the end, from the checkpoint if there is one."""
    optimisers = make_optimisers(model, settings)
    tokens_per_step = settings.batch_rows * settings.context
    step = load_checkpoint(checkpoint, model, optimisers) if checkpoint.exists() else 0
    step_loss = torch.compile(lambda ids: next_token_loss(model, ids).mean(), dynamic=False)
    peak_lrs = [settings.lr_matrices, settings.lr_rest]
    started, first_step = time.monotonic(), step
    while step * tokens_per_step < settings.tokens:
        factor = lr_factor(step * tokens_per_step, settings)
        for optimiser, peak in zip(optimisers, peak_lrs, strict=True):
            optimiser.param_groups[0]["lr"] = peak * factor
        loss = step_loss(rows.at(step).to(model.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        step += 1
        if step % CHECKPOINT_EVERY == 0:
            rate = (step - first_step) * tokens_per_step / (time.monotonic() - started)
            report(step * tokens_per_step, loss.item(), rate)
            save_checkpoint(checkpoint, model, optimisers, step)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the model; a checkpoint lies beside it"
    )
    parser.add_argument("--tokens", default="18M", help="training tokens, for example 18M")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    settings = Settings(tokens=int(float(arguments.tokens.removesuffix("M")) * 1e6))

    documents = stdlib_documents(include_tests=True)
    training = [document for document in documents if document.split == "train"]
    heldout = [d for d in documents if d.split == "heldout" and not is_test_file(d.id)]
    tokenizer = train_tokenizer(training, settings.vocab_size, settings.context)
    core = encode(tokenizer, [document for document in training if not is_test_file(document.id)])
    tests = encode(tokenizer, [document for document in training if is_test_file(document.id)])
    heldout_ids = encode(tokenizer, heldout)
    bytes_per_token = sum(len(d.text.encode()) for d in heldout) / int((heldout_ids != 0).sum())
    print(
        f"{len(core):,} library and {len(tests):,} test tokens, {bytes_per_token:.2f} bytes a token",
        flush=True,
    )

    arguments.out.mkdir(parents=True, exist_ok=True)
    model = make_model(settings).to(arguments.device)

    def report(tokens: int, loss: float, rate: float) -> None:
        quick = scores(model, heldout_ids, bytes_per_token, 64, settings.context)
        print(
            json.dumps({"tokens": tokens, "loss": round(loss, 3), "tokens_per_second": round(rate)} | quick),
            flush=True,
        )

    train(
        model,
        Rows(core, tests, settings),
        settings,
        arguments.out.with_suffix(".checkpoint.safetensors"),
        report,
    )
    final = scores(model, heldout_ids, bytes_per_token, 10_000, settings.context)
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_tokens": settings.tokens,
        "python": platform.python_version(),
        "library_tokens": len(core),
        "test_tokens": len(tests),
    }
    model.config.use_cache = True
    model.half().cpu().save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    record = {"scores": final, "facts": facts, "settings": asdict(settings)}
    (arguments.out / "scores.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
