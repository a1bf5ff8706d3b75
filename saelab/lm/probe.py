"""Find a model's hookpoints by running it once and looking at what each module takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from saelab.errors import SaelabError
from saelab.lm.architecture import build_empty, example_batch, reads_tokens
from saelab.lm.calls import Batch, call_with_batch, call_with_tokens, examples_in
from saelab.lm.devices import placement
from saelab.lm.families import transformer_lens_names
from saelab.lm.hooks import Hookpoint
from saelab.lm.sites import attach
from saelab.lm.source import first_line, locate, locate_adapter
from saelab.lm.spec import ModelSpec
from saelab_kernels.shapes import Tensor

# Two rows, so that what is the same for every row (position embeddings, rotary tables) is told
# apart from activations by its shape.
_TOKENS = (2, 3)
_CONVOLUTIONS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


def list_hookpoints(spec: ModelSpec) -> list[Hookpoint]:
    """List a model's hookpoints in the order in which a forward pass reaches them, without loading weights.

    The model is built from its configuration on the meta device, where tensors have shapes and no
    data, and one forward pass records what each module takes and returns. An adapter adds none: it
    is merged into the weights.

    Raises:
        UsageError: There is no such model, or no such device or dtype here.
        SaelabError: It cannot be built or run in this way.
    """
    from saelab.lm.quiet import quiet_transformers

    placement(spec)  # nothing is loaded, and what cannot be loaded later is refused all the same
    files = locate(spec, weights=False)
    if spec.adapter is not None:
        locate_adapter(spec.adapter, weights=False)
    try:
        with quiet_transformers():
            return model_hookpoints(build_empty(files.folder), meta=True)
    except SaelabError:
        raise
    # A stranger's configuration can fail anywhere inside the library, with any type.
    except Exception as error:
        raise SaelabError(
            f"cannot list the hookpoints of {spec.name} from its configuration alone: {first_line(error)}"
        ) from error


def model_hookpoints(model: nn.Module, *, meta: bool = False) -> list[Hookpoint]:
    """List the hookpoints of a transformers model, or of any module that reads tokens.

    Args:
        model: The model; it is run on two rows of three tokens, or on two examples of what else it reads.
        meta: Its tensors have no data.

    Raises:
        SaelabError: It reads neither tokens nor images.
    """
    if reads_tokens(model):
        return token_hookpoints(model, meta=meta)
    return batch_hookpoints(model, example_batch(model))


def token_hookpoints(model: nn.Module, *, meta: bool = False) -> list[Hookpoint]:
    """List the places of a model that reads tokens.

    A hookpoint is the input or the output of a module that runs once a forward pass: a float tensor
    `[rows, length, d]` (the first of a tuple counts). The unembedding's output is left out: logits
    are not activations.
    """

    def width(_: nn.Module, x: Tensor) -> int | None:
        return x.shape[2] if x.dim() == 3 and x.shape[:2] == _TOKENS else None

    tokens = torch.zeros(_TOKENS, dtype=torch.int64, device="meta" if meta else None)
    # With a cache transformers skips a look at the positions' values, which have none on meta.
    return _record(model, lambda: call_with_tokens(model, tokens, use_cache=True), width)


def batch_hookpoints(model: nn.Module, batch: Batch, *, channel_dim: int = -1) -> list[Hookpoint]:
    """List the places of any module by running it on an example.

    A hookpoint is the input or the output of a module that runs once a forward pass: a float tensor
    of two or more dimensions, the examples first. With the channels last, maps `[B, C, H, W]` of
    convolutions are left out; ask for ``channel_dim=1`` to read those.

    Args:
        model: Any module.
        batch: Input of a forward pass.
        channel_dim: Dimension of the activations that is `d_in`.
    """
    examples = examples_in(batch)

    def width(module: nn.Module, x: Tensor) -> int | None:
        if x.dim() < 2 or len(x) != examples or not -x.dim() <= channel_dim < x.dim():
            return None
        if channel_dim == -1 and _has_channels_first(module, x):
            return None
        return x.shape[channel_dim]

    return _record(model, lambda: call_with_batch(model, batch), width)


def _has_channels_first(module: nn.Module, x: Tensor) -> bool:
    if isinstance(module, _CONVOLUTIONS):
        return x.dim() > 2
    return x.dim() > 3 and any(isinstance(part, _CONVOLUTIONS) for part in module.modules())


def _record(
    model: nn.Module, forward: Callable[[], object], width: Callable[[nn.Module, Tensor], int | None]
) -> list[Hookpoint]:
    aliases = aliases_of(model)
    getter = getattr(model, "get_output_embeddings", None)
    unembedding = None if getter is None else getter()
    logits: list[Tensor] = []
    widths: dict[str, list[int | None]] = {}

    def record(path: str, module: nn.Module, x: Tensor) -> None:
        if module is unembedding and path.endswith(".output"):
            logits.append(x)
        # The modules around an unembedding hand on the same tensor.
        is_logits = any(x is known for known in logits)
        is_activation = x.is_floating_point() and not is_logits
        widths.setdefault(path, []).append(width(module, x) if is_activation else None)

    handles = []
    try:
        for name, module in model.named_modules():
            if name:
                paths = (f"{name}.input", f"{name}.output")
                handles += [attach(model, path, partial(record, path, module)) for path in paths]
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return [
        Hookpoint(path, aliases.get(path), calls[0])
        for path, calls in widths.items()
        if len(calls) == 1 and calls[0] is not None
    ]


def aliases_of(model: nn.Module) -> Mapping[str, str]:
    """Return the TransformerLens name of each module path of a transformers model that has one."""
    config = getattr(model, "config", None)
    if not hasattr(model, "base_model_prefix") or config is None:
        return {}
    names = transformer_lens_names(config.model_type, getattr(config, "num_hidden_layers", 0))
    # A model without a head (LlamaModel) is what others hold under a name (LlamaForCausalLM.model).
    is_bare = getattr(model, "base_model", None) is model
    prefix = f"{model.base_model_prefix}." if is_bare else ""
    return {path.removeprefix(prefix): alias for path, alias in names.items()}
