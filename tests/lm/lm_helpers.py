"""Configurations of tiny models of many families, as transformers would read them from a folder."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

D_MODEL, CONTEXT = 24, 32
_SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": D_MODEL,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # large enough for activations and losses that differ between tokens
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 6}
_EXTRA: dict[str, dict[str, Any]] = {
    "llama": _GROUPED | {"tie_word_embeddings": True},
    "phi": {"partial_rotary_factor": 0.34},
    "gpt_neox-serial": {"use_parallel_residual": False},
    "gpt_neox": {"use_parallel_residual": True},
    "gpt2": {},
    "bert": {},
    "roberta": {"pad_token_id": 1},
    "mixtral": _GROUPED | {"num_local_experts": 4},
}


def tiny_config(family: str, **more: Any) -> PreTrainedConfig:
    """Return the configuration of a tiny model: a ``model_type`` of transformers, and perhaps a variant of it."""
    options = _SHAPE | _EXTRA.get(family, _GROUPED) | more
    return AutoConfig.for_model(family.partition("-")[0], **options)
