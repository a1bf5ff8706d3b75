"""Run a model to its hookpoints: read activations, edit them, and take gradients there.

Plain PyTorch hooks on the model's own modules; the forward pass stops as soon as nothing is left
to see. Rows may be padded on the right: in a causal model padding changes nothing before it, and
losses and gradients are those of causal models. Any other needs an attention mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

from saelab.errors import SaelabError, UsageError
from saelab.lm.calls import call_with_tokens
from saelab.lm.hooks import Hookpoint
from saelab.lm.load import LanguageModel
from saelab.lm.losses import loss_gradient, sampled_tokens
from saelab.lm.sites import Stop, Visit, attach, read
from saelab.lm.unembedding import Unembedding
from saelab_kernels.shapes import Bool, Float, Int, Tensor

Edit = Callable[[Float[Tensor, "rows length d"]], Float[Tensor, "rows length d"]]
Activations = dict[Hookpoint, Float[Tensor, "rows length d"]]


def capture(
    lm: LanguageModel,
    input_ids: Int[Tensor, "rows length"],
    hookpoints: Sequence[Hookpoint],
    attention_mask: Int[Tensor, "rows length"] | None = None,
) -> Activations:
    """Read the activations at some hookpoints, stopping the forward pass right after the last of them.

    Inside `edited` the edited activations are seen.

    Args:
        lm: The model.
        input_ids: Token ids on any device.
        hookpoints: Where to read, in any order.
        attention_mask: 1 for tokens, 0 for padding. A causal model does not need it for padding on
            the right; any other does (`LanguageModel.mask_for` tells): without it every token counts.

    Returns:
        Per hookpoint its activations in the model's dtype, on the device where they arise; the
        caller's own copy.

    Raises:
        UsageError: A hookpoint is not of this model, the rows are longer than its context, or it
            reads no tokens.
    """
    _require_hookpoints(lm, hookpoints)
    places = [hookpoint.module_path for hookpoint in hookpoints]
    seen = read(lm.module, places, lambda: _forward(lm, input_ids, attention_mask))
    found = {
        hookpoint: seen[hookpoint.module_path] for hookpoint in hookpoints if hookpoint.module_path in seen
    }
    _check_all_seen(lm, found, hookpoints)
    return found


@contextmanager
def edited(lm: LanguageModel, edits: Mapping[Hookpoint, Edit]) -> Iterator[None]:
    """Replace activations in every forward pass inside the block.

    Args:
        lm: The model.
        edits: Per hookpoint a function from its activations `[rows, length, d]` to their
            replacement of the same shape, which is brought to the model's dtype and device. It must
            not change its argument in place.

    Raises:
        UsageError: A hookpoint is not of this model.
        ValueError: A replacement has another shape (raised in the forward pass).
    """

    def editor(hookpoint: Hookpoint, edit: Edit) -> Visit:
        def replace(x: Tensor) -> Tensor:
            new = edit(x)
            if new.shape != x.shape:
                shapes = f"shape {tuple(new.shape)}, not {tuple(x.shape)}"
                raise ValueError(f"the edit at {hookpoint.module_path} returned {shapes}")
            return new.to(device=x.device, dtype=x.dtype)

        return replace

    with _attached(lm, {hookpoint: editor(hookpoint, edit) for hookpoint, edit in edits.items()}):
        yield


def final_hidden(
    lm: LanguageModel,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Int[Tensor, "rows length"] | None = None,
) -> Float[Tensor, "rows length d"]:
    """Return what enters the unembedding, on its device and without logits; for `losses`, with `unembedding(lm)`."""
    with torch.inference_mode():
        hidden = _run_to_unembedding(lm, input_ids, attention_mask)
        with torch.inference_mode(False):
            return hidden.clone()


def unembedding(lm: LanguageModel) -> Unembedding:
    """Return the map from the final hidden states to logits.

    Raises:
        SaelabError: The model does not predict the next token, or makes its logits in a way that
            saelab does not know.
    """
    if lm.unembedding is None:
        raise SaelabError(
            f"{lm.identity.name} {lm.no_losses}, so saelab cannot compute its losses; its activations can be used"
        )
    return lm.unembedding


def capture_with_gradients(
    lm: LanguageModel,
    input_ids: Int[Tensor, "rows length"],
    hookpoints: Sequence[Hookpoint],
    counted: Bool[Tensor, "rows length"],
    uniform: Float[Tensor, "rows length"] | None = None,
) -> tuple[Activations, Activations, Float[Tensor, "rows length"]]:
    """Read activations together with the gradient of the next-token loss at each hookpoint.

    The gradient is that of the summed loss (nats) of the counted predictions with respect to what
    flows on from the hookpoint, as if it were edited there; parameters get none. No logits
    `[rows, length, V]` are held.

    Args:
        lm: The model.
        input_ids: Token ids on any device.
        hookpoints: Where to read.
        counted: True at position t where the prediction of token t + 1 made from token t counts;
            always False in the last column.
        uniform: Numbers in [0, 1), float64: the labels are drawn with them from the model's own predictions
            (`losses.sampled_tokens`). Without them the labels are the tokens that follow.

    Returns:
        Activations and gradients per hookpoint, in the model's dtype, and the float32 loss of every
        label (0 where the prediction is not counted).
    """
    if counted[:, -1].any():
        raise ValueError(
            "capture_with_gradients: the last column of counted must be False: nothing follows it"
        )
    seen: Activations = {}

    def reader(hookpoint: Hookpoint) -> Visit:
        def branch(x: Tensor) -> Tensor:
            # A tensor of its own: the gradient of x itself would include uses of x that bypass the
            # hookpoint (a residual stream that is also read elsewhere).
            own = x.view_as(x) if x.requires_grad else x.detach().clone().requires_grad_()
            seen[hookpoint] = own
            return own

        return branch

    with torch.enable_grad(), _attached(lm, {hookpoint: reader(hookpoint) for hookpoint in hookpoints}):
        hidden = _run_to_unembedding(lm, input_ids)
    _check_all_seen(lm, seen, hookpoints)
    device = hidden.device  # not that of the input, where the model is spread over several
    counted = counted.to(device)
    entering, head = hidden.detach()[counted], unembedding(lm)
    if uniform is None:
        labels = input_ids.to(device).roll(-1, dims=1)[counted]
    else:
        numbers = uniform[counted.to(uniform.device)]
        labels = sampled_tokens(
            entering, head, numbers.float().to(device) if device.type == "mps" else numbers.to(device)
        )
    loss = torch.zeros(counted.shape, dtype=torch.float32, device=device)
    upstream = torch.zeros_like(hidden)
    loss[counted], gradient = loss_gradient(entering, head, labels)
    upstream[counted] = gradient.to(hidden.dtype)
    ordered = [seen[hookpoint] for hookpoint in hookpoints]
    gradients = torch.autograd.grad(hidden, ordered, upstream)
    return (
        {hookpoint: x.detach() for hookpoint, x in zip(hookpoints, ordered, strict=True)},
        dict(zip(hookpoints, gradients, strict=True)),
        loss,
    )


@contextmanager
def _attached(lm: LanguageModel, visits: Mapping[Hookpoint, Visit]) -> Iterator[None]:
    _require_hookpoints(lm, visits)
    with ExitStack() as stack:
        for hookpoint, visit in visits.items():
            stack.callback(attach(lm.module, hookpoint.module_path, visit).remove)
        yield


def _require_hookpoints(lm: LanguageModel, hookpoints: Iterable[Hookpoint]) -> None:
    for hookpoint in hookpoints:
        if hookpoint not in lm.hookpoints:
            raise UsageError(f"the model {lm.identity.name} has no hookpoint {hookpoint.module_path}")


def _forward(lm: LanguageModel, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
    if not lm.reads_tokens:
        raise UsageError(
            f"{lm.identity.name} does not read tokens; read its activations in Python with "
            "saelab.lm.modules.iter_activations"
        )
    if lm.context is not None and input_ids.shape[1] > lm.context:
        raise UsageError(
            f"rows of {input_ids.shape[1]} tokens: {lm.identity.name} reads at most {lm.context}"
        )
    return call_with_tokens(lm.module, input_ids, attention_mask)


def _run_to_unembedding(lm: LanguageModel, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    seen: list[Tensor] = []

    def read_entering(_: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise Stop

    head = lm.hf.get_output_embeddings()
    if head is None:
        raise SaelabError(f"{lm.identity.name} has no unembedding: it is not a model that predicts tokens")
    handle = head.register_forward_pre_hook(read_entering)
    try:
        with suppress(Stop):
            _forward(lm, input_ids, attention_mask)
    finally:
        handle.remove()
    weight = head.weight
    # Where the model is spread over devices, its last block may be on another one than its unembedding.
    return seen[0] if not isinstance(weight, Tensor) or weight.is_meta else seen[0].to(weight.device)


def _check_all_seen(lm: LanguageModel, seen: Activations, hookpoints: Sequence[Hookpoint]) -> None:
    for hookpoint in hookpoints:
        if hookpoint not in seen:
            raise SaelabError(
                f"{hookpoint.module_path} was not reached in a forward pass of {lm.identity.name}"
            )
