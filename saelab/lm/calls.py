"""How a model is called: with tokens, or with whatever a batch holds, on the device that it reads from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from saelab.errors import UsageError
from saelab_kernels.shapes import Int, Tensor

Batch = Tensor | Mapping[str, Any]
"""Input of a module: one tensor (its first argument), or its arguments by name; examples come first."""


def call_with_tokens(
    model: nn.Module,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Int[Tensor, "rows length"] | None = None,
    *,
    use_cache: bool = False,
) -> Any:
    """Run a model on tokens.

    Args:
        model: Takes tokens as ``input_ids``, or as its first argument.
        input_ids: On any device.
        attention_mask: 1 for tokens, 0 for padding.
        use_cache: Whether a model that can keep keys and values should.

    Raises:
        UsageError: There is a mask and the model takes none.
    """
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    device = input_device(model)
    options: dict[str, Any] = {"use_cache": use_cache} if "use_cache" in parameters else {}
    if attention_mask is not None:
        if "attention_mask" not in parameters and not takes_any:
            raise UsageError(
                f"{type(model).__name__} takes no attention_mask, so rows of different lengths cannot be told "
                "from padding; give it rows of one length"
            )
        options["attention_mask"] = attention_mask.to(device)
    ids = input_ids.to(device)
    return model(input_ids=ids, **options) if "input_ids" in parameters else model(ids, **options)


def call_with_batch(model: nn.Module, batch: Batch) -> Any:
    """Run a model on a batch, whose tensors are brought to the device that the model reads from."""
    device = input_device(model)
    if isinstance(batch, Tensor):
        return model(batch.to(device))
    return model(**{name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()})


def examples_in(batch: Batch) -> int:
    """Return the number of examples of a batch.

    Raises:
        UsageError: It is neither a tensor nor a dict with one, or it is empty.
    """
    tensors = [batch] if isinstance(batch, Tensor) else []
    if isinstance(batch, Mapping):
        tensors = [x for x in batch.values() if isinstance(x, Tensor)]
    if not tensors or tensors[0].dim() == 0 or len(tensors[0]) == 0:
        raise UsageError(
            f"a batch is a tensor, or a dict of arguments by name, with at least one example; "
            f"found {type(batch).__name__}"
        )
    return len(tensors[0])


def input_device(model: nn.Module) -> torch.device:
    """Return the device that a model's inputs belong on: that of its input embeddings, else of its weights."""
    first = input_embeddings(model)
    # accelerate keeps the weights of an offloaded module away and names the device where it computes.
    execution = getattr(getattr(first, "_hf_hook", None), "execution_device", None)
    if execution is not None:
        return torch.device(execution)
    places = (x.device for source in (first, model) if source is not None for x in source.parameters())
    return next(places, torch.device("cpu"))


def input_embeddings(model: nn.Module) -> nn.Module | None:
    """Return the module that turns tokens into vectors, where there is one."""
    getter = getattr(model, "get_input_embeddings", None)
    if getter is not None:
        try:
            return getter()
        except NotImplementedError:  # models that read no tokens
            return None
    return next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)
