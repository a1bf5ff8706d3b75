"""A byte-level tokenizer with few merges, for tiny models: any text survives encoding and decoding."""

from __future__ import annotations

from typing import Any


def byte_tokenizer(text: str, vocab_size: int, **options: Any):
    """Train a tokenizer on a few repeats of a text; ``options`` go to transformers' wrapper."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator([text] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<|endoftext|>", eos_token="<|endoftext|>", **options
    )
