"""Which class a model folder is, and what its configuration says: any architecture of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from saelab.errors import SaelabError
from saelab.lm.calls import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Layers and positions under the names that configurations use.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")
# Rotary embeddings of these kinds look at the positions' values, which have none on the meta device.
_ROPE_BY_VALUE = ("dynamic", "longrope")


def read_config(folder: Path) -> PreTrainedConfig:
    """Read a model folder's configuration; code from the folder is never run."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of transformers that a configuration describes.

    That which it names; where it names none that there is, the class of its type that predicts the
    next token, fills in masked ones, or just encodes, in this order (a BERT may be built as the
    first, and is one only where it says so).

    Raises:
        SaelabError: There is none.
    """
    import transformers

    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    kind = type(config)
    masked = transformers.MODEL_FOR_MASKED_LM_MAPPING
    mappings = [transformers.MODEL_FOR_CAUSAL_LM_MAPPING, masked, transformers.MODEL_MAPPING]
    if kind in masked and not getattr(config, "is_decoder", False):
        mappings = mappings[1:]
    for mapping in mappings:
        if kind in mapping:
            found: Any = mapping[kind]
            return found[0] if isinstance(found, tuple) else found
    raise SaelabError(f"transformers has no model for configurations of type {config.model_type!r}")


def build_empty(folder: Path) -> PreTrainedModel:
    """Build a folder's model on the meta device: every module and shape, and no weights."""
    config = read_config(folder)
    with torch.device("meta"):
        model: Any = model_class(config)(config)
    # In half precision, because the grouped kernels of mixtures of experts take no other on meta.
    model = model.to(torch.bfloat16).eval()
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):  # it looks at the tokens
            module.warn_if_padding_and_no_attention_mask = lambda *_, **__: None
        rope = getattr(module, "rope_type", None)
        if isinstance(rope, str):
            module.rope_type = _by_position(rope)
        elif isinstance(rope, dict):
            module.rope_type = {layer: _by_position(kind) for layer, kind in rope.items()}
    return model


def _by_position(rope_type: str) -> str:
    # The kind of a rotary embedding changes its angles and no shape.
    return "default" if rope_type in _ROPE_BY_VALUE else rope_type


def reads_tokens(model: nn.Module) -> bool:
    """Tell whether a model's input is tokens; a module that is not of transformers is taken to read them.

    Raises:
        SaelabError: It is an encoder with a decoder, which needs two sequences.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise SaelabError(
            f"{type(model).__name__} has an encoder and a decoder and needs two sequences; read its activations "
            "in Python with saelab.lm.modules.iter_activations"
        )
    return getattr(model, "main_input_name", "input_ids") == "input_ids"


def example_batch(model: nn.Module) -> Batch:
    """Return two examples of what a model reads, all zeros, on the device of its weights.

    Raises:
        SaelabError: It does not read images, or its configuration does not say their size.
    """
    config: Any = model.config
    name = model.main_input_name
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    if name != "pixel_values" or size is None:
        raise SaelabError(
            f"{type(model).__name__} reads {name}, and saelab knows no example of that; load it in Python and "
            "use saelab.lm.modules.iter_activations"
        )
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    first = next(model.parameters())
    return {"pixel_values": torch.zeros(2, channels, height, width, dtype=first.dtype, device=first.device)}


def layers_of(config: Any) -> int | None:
    """Return the number of blocks of a model (of its text part, where it has several), if it says one."""
    return _first_number(config, _LAYERS)


def context_of(model: nn.Module) -> int | None:
    """Return the largest number of tokens in a row, or None where there is no limit or none is said."""
    longest = _first_number(getattr(model, "config", None), _POSITIONS)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            # RoBERTa and its kin count positions from behind the padding token's id.
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            longest = module.num_embeddings - skipped
    return longest


def _first_number(config: Any, names: tuple[str, ...]) -> int | None:
    if config is None:
        return None
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = (getattr(text, name, None) for name in names)
    return next((number for number in found if isinstance(number, int) and number > 0), None)
