"""Load a model from the package, a folder or the hub, or take a module, ready to be read and edited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from saelab.errors import SaelabError, UsageError
from saelab.lm.adapter import merge_adapter, require_peft
from saelab.lm.architecture import context_of, layers_of, reads_tokens
from saelab.lm.calls import Batch, input_device
from saelab.lm.causality import is_causal
from saelab.lm.devices import placement
from saelab.lm.hooks import Hookpoint
from saelab.lm.identity import ModelIdentity, hash_adapter, hash_model, hash_module, hash_tokenizer
from saelab.lm.probe import batch_hookpoints, model_hookpoints
from saelab.lm.quiet import quiet_transformers
from saelab.lm.source import first_line, locate, locate_adapter
from saelab.lm.spec import IN_PYTHON, ModelSpec
from saelab.lm.unembedding import Unembedding, read_unembedding
from saelab.lm.weights import load_tokenizer, load_weights
from saelab.storage.manifest import digest_of
from saelab_kernels.shapes import Bool, Int, Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageModel:
    """A model whose activations can be read; its weights are frozen and nothing on it changes between calls."""

    module: nn.Module
    """The model, in evaluation mode."""
    optional_tokenizer: PreTrainedTokenizerFast | None
    """Its tokenizer, if it has one."""
    spec: ModelSpec
    """What was asked for."""
    identity: ModelIdentity
    """What was loaded."""
    hookpoints: tuple[Hookpoint, ...]
    """Where activations can be read and edited, in the order of a forward pass."""
    reads_tokens: bool
    """Whether its input is tokens; of other models only the hookpoints and the module are of use."""
    causal: bool
    """Whether it reads from left to right, so that padding on the right changes nothing before it."""
    unembedding: Unembedding | None
    """Its map from final hidden states to logits, or None where it has no next-token loss."""
    no_losses: str
    """Why there is no unembedding, as the end of a sentence about the model; empty where there is one."""
    context: int | None
    """Largest number of tokens in a row, where there is a limit."""
    n_layers: int | None
    """Number of blocks, where the configuration says it."""

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        tokenizer: PreTrainedTokenizerFast | None = None,
        *,
        name: str,
        context: int | None = None,
        example: Batch | None = None,
    ) -> LanguageModel:
        """Take a module that is in memory, of any class.

        Its identity is a hash of its state, classes and configuration. What is made from it records
        the name ``module:NAME``, from which nothing can be loaded: hand the `LanguageModel` over
        again, and use its ``spec`` where a `ModelSpec` is asked for.

        Args:
            module: In evaluation mode. Without an example it must read tokens, as ``input_ids`` or
                as its first argument, and take an ``attention_mask`` if it is not causal.
            tokenizer: Its tokenizer, which it needs wherever text is turned into activations.
            name: For people.
            context: Largest number of tokens in a row, where the module has no configuration that says it.
            example: Input of a forward pass, for a module that does not read tokens.

        Raises:
            UsageError: The module is in training mode.
        """
        if module.training:
            raise UsageError(f"the module {name} is in training mode, where dropout is at work; call .eval()")
        spec = ModelSpec(name=f"{IN_PYTHON}{name}")
        identity = module_identity(module, name, tokenizer)
        return _describe(module, tokenizer, spec, identity, context=context, example=example)

    @property
    def hf(self) -> PreTrainedModel:
        """The model as one of transformers.

        Raises:
            SaelabError: It is not one.
        """
        from transformers import PreTrainedModel

        if not isinstance(self.module, PreTrainedModel):
            raise SaelabError(
                f"{self.identity.name} is a {type(self.module).__name__}, no transformers model"
            )
        return self.module

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Its tokenizer.

        Raises:
            SaelabError: It has none.
        """
        if self.optional_tokenizer is None:
            raise SaelabError(f"{self.identity.name} has no tokenizer, so it cannot be given text")
        return self.optional_tokenizer

    @property
    def device(self) -> torch.device:
        """Where its input goes; where it is spread over devices, activations come from several."""
        return input_device(self.module)

    def mask_for(self, real: Bool[Tensor, "rows length"]) -> Int[Tensor, "rows length"] | None:
        """Return the attention mask that rows padded on the right need: None where none makes a difference.

        Args:
            real: True for tokens, False for padding.
        """
        return None if self.causal or bool(real.all()) else real.long()


def load_model(spec: ModelSpec) -> LanguageModel:
    """Load a model; the network is used for hub names only, and code from a model's folder is never run.

    Raises:
        UsageError: The device or dtype is unknown or not available here.
        SaelabError: There is no such model, it is gated or out of reach, its weights are incomplete
            or not in safetensors, it lacks a fast tokenizer, the adapter does not fit, or a package
            that an option needs is missing; one line each.
    """
    spec = spec.resolved()
    device, dtype = placement(spec)
    if spec.adapter is not None:
        require_peft()
    files = locate(spec)
    adapter_files = None if spec.adapter is None else locate_adapter(spec.adapter)
    model_hash, adapter = hash_model(files.folder), None
    if adapter_files is not None:
        adapter_hash = hash_adapter(adapter_files.folder)
        model_hash = digest_of(f"{model_hash} {adapter_hash}".encode())
        adapter = f"{adapter_files.name}:{adapter_hash}"
    with quiet_transformers():
        model = load_weights(files, dtype, device, spec.device_map)
        if adapter_files is not None:
            model = merge_adapter(model, adapter_files)
        tokenizer = load_tokenizer(files) if reads_tokens(model) else None
    model.requires_grad_(False).eval()
    identity = _identity(model, tokenizer, model_hash, files.name, files.revision, adapter)
    try:
        return _describe(model, tokenizer, spec, identity)
    except SaelabError:
        raise
    # Models that need more than tokens or images fail anywhere inside the library, with any type.
    except Exception as error:
        raise SaelabError(
            f"cannot run the model {files.name} on a few tokens or an image: {first_line(error)}"
        ) from error


def module_identity(
    module: nn.Module, name: str, tokenizer: PreTrainedTokenizerFast | None = None
) -> ModelIdentity:
    """Return the identity of a module in memory: a hash of its state, classes and configuration."""
    return _identity(module, tokenizer, hash_module(module), f"{IN_PYTHON}{name}")


def _identity(
    module: nn.Module,
    tokenizer: PreTrainedTokenizerFast | None,
    model_hash: str,
    name: str,
    revision: str | None = None,
    adapter: str | None = None,
) -> ModelIdentity:
    weights = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(0))
    return ModelIdentity(
        hash=model_hash,
        name=name,
        revision=revision,
        dtype=str(weights.dtype).removeprefix("torch."),
        attention=str(getattr(getattr(module, "config", None), "_attn_implementation", "own")),
        tokenizer_hash="" if tokenizer is None else hash_tokenizer(tokenizer),
        adapter=adapter,
    )


def _describe(
    module: nn.Module,
    tokenizer: PreTrainedTokenizerFast | None,
    spec: ModelSpec,
    identity: ModelIdentity,
    *,
    context: int | None = None,
    example: Batch | None = None,
) -> LanguageModel:
    """Look at a module in memory: its hookpoints, whether it is causal, and its unembedding."""
    has_tokens = example is None and reads_tokens(module)
    with quiet_transformers():
        hookpoints = model_hookpoints(module) if example is None else batch_hookpoints(module, example)
        causal = has_tokens and is_causal(module, hookpoints)
        found = read_unembedding(module) if causal else "does not predict the next token of a text"
    return LanguageModel(
        module=module,
        optional_tokenizer=tokenizer,
        spec=spec,
        identity=identity,
        hookpoints=tuple(hookpoints),
        reads_tokens=has_tokens,
        causal=causal,
        unembedding=None if isinstance(found, str) else found,
        no_losses=found if isinstance(found, str) else "",
        context=context_of(module) if context is None else context,
        n_layers=layers_of(getattr(module, "config", None)),
    )
