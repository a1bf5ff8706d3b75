"""Load a language model from the package, a folder or the hub, ready to be read and edited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from saelab.errors import SaelabError, UsageError
from saelab.lm.hooks import Hookpoint, record_hookpoints
from saelab.lm.identity import ModelIdentity, hash_model, hash_tokenizer
from saelab.lm.quiet import quiet_transformers
from saelab.lm.source import ModelFiles, first_line, locate
from saelab.lm.spec import ModelSpec
from saelab.lm.unembedding import Unembedding, read_unembedding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageModel:
    """A loaded language model; its weights are frozen and nothing on it changes between calls."""

    hf: PreTrainedModel
    """The transformers model, in evaluation mode, without gradients for its parameters."""
    tokenizer: PreTrainedTokenizerFast
    """Its tokenizer."""
    spec: ModelSpec
    """What was asked for."""
    identity: ModelIdentity
    """What was loaded."""
    hookpoints: tuple[Hookpoint, ...]
    """Where activations can be read and edited, in the order of a forward pass."""
    unembedding: Unembedding | None
    """Its map from final hidden states to logits, or None where that is of a kind saelab does not know."""

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.hf.device

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.hf.config.num_hidden_layers

    @property
    def context(self) -> int:
        """Largest number of tokens in a row."""
        return self.hf.config.max_position_embeddings


def load_model(spec: ModelSpec) -> LanguageModel:
    """Load a model; the network is used for hub names only, and code from a model's folder is never run.

    Raises:
        UsageError: The device or dtype is unknown or not available here.
        SaelabError: There is no such model, it is gated or out of reach, its weights are incomplete
            or not in safetensors, or it lacks a fast tokenizer; one line each.
    """
    device = choose_device(spec.device)
    dtype = _choose_dtype(spec.dtype, device)
    files = locate(spec)
    model_hash = hash_model(files.folder)
    with quiet_transformers():
        hf = _load_weights(files, dtype).to(device)  # pyright: ignore[reportArgumentType]
        tokenizer = _load_tokenizer(files)
    hf.requires_grad_(False).eval()
    identity = ModelIdentity(
        hash=model_hash,
        name=files.name,
        revision=files.revision,
        dtype=str(hf.dtype).removeprefix("torch."),
        attention=str(hf.config._attn_implementation),
        tokenizer_hash=hash_tokenizer(tokenizer),
    )
    return LanguageModel(
        hf=hf,
        tokenizer=tokenizer,
        spec=spec,
        identity=identity,
        hookpoints=tuple(record_hookpoints(hf)),
        unembedding=read_unembedding(hf),
    )


def choose_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` takes cuda, then mps, then cpu.

    Raises:
        UsageError: There is no such device on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_there in available.items() if is_there))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no device {name!r}; use auto, cuda, cuda:N, mps or cpu") from error
    beyond = device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count()
    if not available.get(device.type, False) or beyond:
        raise UsageError(f"the device {name!r} is not available on this machine; use auto or cpu")
    return device


def _choose_dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name == "auto":
        # Half precision is slow on most CPUs; "auto" means the saved format to transformers.
        return torch.float32 if device.type == "cpu" else "auto"
    if name not in _DTYPES:
        raise UsageError(f"there is no model dtype {name!r}; use auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _load_weights(files: ModelFiles, dtype: torch.dtype | str) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            files.folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    # Damaged or foreign files can fail anywhere inside the library, with any type.
    except Exception as error:
        raise SaelabError(f"cannot load the model {files.name}: {first_line(error)}") from error
    hf, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would go on with random ones
        raise SaelabError(
            f"cannot load the model {files.name}: it lacks {len(missing)} weights, as {missing[0]}"
        )
    return hf


def _load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            files.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # as above
        raise SaelabError(f"cannot load the tokenizer of {files.name}: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise SaelabError(
            f"the tokenizer of {files.name} has no fast version (tokenizer.json), which saelab needs"
        )
    return tokenizer
