"""Which model it was: a hash over configuration and weights, so that equal names cannot deceive."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.errors import DamagedFileError, SaelabError
from saelab.lm.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from saelab.storage.files import read_json
from saelab.storage.manifest import digest_of, digest_of_file

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerFast

# What transformers writes into a config about itself; it does not change what the model computes.
_VOLATILE = {"_name_or_path", "transformers_version"}
# And PEFT into that of an adapter.
_VOLATILE_IN_ADAPTERS = {"base_model_name_or_path", "revision", "peft_version", "inference_mode"}


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """A loaded model as it is recorded beside everything made from it."""

    hash: str
    """128-bit blake2b over the configuration and the weights, the adapter's too: what decides equality."""
    name: str
    """``embedded``, the folder's own name, or the hub name; for people."""
    revision: str | None
    """Commit of a hub model."""
    dtype: str
    """Number format that the weights were loaded in, for example ``float32``."""
    attention: str
    """Attention implementation, for example ``sdpa``; ``own`` in a module that is not of transformers."""
    tokenizer_hash: str
    """128-bit blake2b over what the tokenizer does with text; empty where there is none."""
    adapter: str | None
    """Name and hash of the LoRA adapter that was merged into the weights."""

    def to_json(self) -> dict[str, str | None]:
        """Return the record as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Any) -> ModelIdentity:
        """Read a record back.

        Raises:
            DamagedFileError: A field is missing, unknown, or not text.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(raw, dict) or set(raw) != names:
            raise DamagedFileError(
                f"a model identity has the fields {', '.join(sorted(names))}; found {raw!r}"
            )
        may_be_none = {"revision", "adapter"}
        wrong = [
            n
            for n in sorted(names)
            if not isinstance(raw[n], str) and not (n in may_be_none and raw[n] is None)
        ]
        if wrong:
            raise DamagedFileError(f"the model identity's {wrong[0]} is {raw[wrong[0]]!r}, not text")
        return cls(**raw)


def hash_model(folder: Path) -> str:
    """Hash a model folder's configuration and the content of its weight files.

    Args:
        folder: Hugging Face layout; every ``*.safetensors`` file directly in it counts, in the
            order of the names. Two models that differ in one weight differ in this hash.

    Raises:
        SaelabError: There are no safetensors weights, or a file cannot be read.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise DamagedFileError(f"{folder / 'config.json'} is not a model configuration")
    weight_files = sorted(folder.glob("*.safetensors"))
    if not weight_files:
        raise SaelabError(
            f"{folder} has no *.safetensors weights; other formats are not read, convert them first"
        )
    stable = {key: value for key, value in config.items() if key not in _VOLATILE}
    return digest_of(
        json.dumps([stable, [digest_of_file(path) for path in weight_files]], sort_keys=True).encode()
    )


def hash_adapter(folder: Path) -> str:
    """Hash an adapter's configuration and weights, without what it says about its own history.

    Raises:
        SaelabError: There are no safetensors weights, or a file cannot be read.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    if not isinstance(config, dict):
        raise DamagedFileError(f"{folder / ADAPTER_CONFIG} is not an adapter's configuration")
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise SaelabError(
            f"{folder} has no {ADAPTER_WEIGHTS}; other formats are not read, convert the adapter first"
        )
    stable = {key: value for key, value in config.items() if key not in _VOLATILE_IN_ADAPTERS}
    return digest_of(json.dumps([stable, digest_of_file(weights)], sort_keys=True).encode())


def hash_module(module: nn.Module) -> str:
    """Hash a module in memory: the content of its state, its classes, and its configuration if it has one.

    Values that a class keeps outside of its state (an epsilon, a flag) count where torch's own
    classes print them; those of other classes do not.

    Raises:
        SaelabError: A part of its state is not in memory.
    """
    import torch

    parts = [repr(sorted(_stable_config(module).items()))]
    for name, part in module.named_modules():
        kind = type(part)
        details = part.extra_repr() if kind.__module__.startswith("torch.") else ""
        parts.append(f"{name} {kind.__module__}.{kind.__qualname__} {details}")
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor) and value.is_meta:
            raise SaelabError(
                f"the module's {name} is not in memory (offloaded or on meta), so it has no identity"
            )
        if isinstance(value, torch.Tensor):
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            parts.append(f"{name} {value.dtype} {tuple(value.shape)} {digest_of(content.tobytes())}")
        else:
            parts.append(f"{name} {value!r}")
    return digest_of("\n".join(parts).encode())


def _stable_config(module: nn.Module) -> dict[str, Any]:
    config: Any = getattr(module, "config", None)
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    return {key: value for key, value in values.items() if key not in _VOLATILE}


def hash_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash what decides the token ids of a text: vocabulary, rules and the special tokens' ids.

    Truncation and padding are left out: they are settings of a call that transformers keeps in the
    tokenizer, and would make the hash depend on what was encoded before.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules.pop("truncation", None)
    rules.pop("padding", None)
    names = ("bos_token_id", "cls_token_id", "eos_token_id", "unk_token_id")
    special = [getattr(tokenizer, name) for name in names]
    return digest_of(json.dumps([rules, special], sort_keys=True).encode())
