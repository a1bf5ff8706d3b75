"""Run a model to its hookpoints: read activations, edit them, and take gradients there.

Plain PyTorch hooks on the model's own modules; the forward pass stops as soon as nothing is left
to see. Rows may be padded on the right: in a causal model padding changes nothing before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

from saelab.errors import SaelabError, UsageError
from saelab.lm.hooks import Hookpoint
from saelab.lm.load import LanguageModel
from saelab.lm.losses import loss_gradient
from saelab.lm.sites import Visit, attach
from saelab.lm.unembedding import Unembedding
from saelab_kernels.shapes import Bool, Float, Int, Tensor

Edit = Callable[[Float[Tensor, "rows length d"]], Float[Tensor, "rows length d"]]
Activations = dict[Hookpoint, Float[Tensor, "rows length d"]]


class _Stop(Exception):
    """Ends a forward pass whose remaining part is not needed."""


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
        attention_mask: 1 for tokens, 0 for padding; not needed for padding on the right.

    Returns:
        Per hookpoint its activations in the model's dtype on the model's device, the caller's own copy.

    Raises:
        UsageError: A hookpoint is not of this model, or the rows are longer than its context.
    """
    seen: Activations = {}

    def reader(hookpoint: Hookpoint) -> Visit:
        def read(x: Tensor) -> None:
            # Outside inference mode the copy is an ordinary tensor, which autograd may save later;
            # and a copy cannot be changed by what the model does to its own tensor afterwards.
            with torch.inference_mode(False):
                seen[hookpoint] = x.clone()
            if len(seen) == len(wanted):
                raise _Stop

        return read

    wanted = {hookpoint: reader(hookpoint) for hookpoint in hookpoints}
    if wanted:
        with torch.inference_mode(), _attached(lm, wanted), suppress(_Stop):
            _forward(lm, input_ids, attention_mask)
    _check_all_seen(lm, seen, hookpoints)
    return {hookpoint: seen[hookpoint] for hookpoint in hookpoints}


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
    """Return what enters the unembedding, without computing logits; for `losses`, with `unembedding(lm)`."""
    with torch.inference_mode():
        hidden = _run_to_unembedding(lm, input_ids, attention_mask)
        with torch.inference_mode(False):
            return hidden.clone()


def unembedding(lm: LanguageModel) -> Unembedding:
    """Return the map from the final hidden states to logits.

    Raises:
        SaelabError: The model makes its logits in a way that saelab does not know.
    """
    if lm.unembedding is None:
        raise SaelabError(
            f"{lm.identity.name} does more to its logits than a linear map and a soft cap, so saelab cannot "
            "compute its losses; its activations can be used"
        )
    return lm.unembedding


def capture_with_gradients(
    lm: LanguageModel,
    input_ids: Int[Tensor, "rows length"],
    hookpoints: Sequence[Hookpoint],
    counted: Bool[Tensor, "rows length"],
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

    Returns:
        Activations and gradients per hookpoint, in the model's dtype, and the float32 loss of every
        prediction (0 where it is not counted).
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
    counted = counted.to(lm.device)
    targets = input_ids.to(lm.device).roll(-1, dims=1)
    loss = torch.zeros(counted.shape, dtype=torch.float32, device=lm.device)
    upstream = torch.zeros_like(hidden)
    loss[counted], gradient = loss_gradient(hidden.detach()[counted], unembedding(lm), targets[counted])
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
    with ExitStack() as stack:
        for hookpoint, visit in visits.items():
            if hookpoint not in lm.hookpoints:
                raise UsageError(f"the model {lm.identity.name} has no hookpoint {hookpoint.module_path}")
            stack.callback(attach(lm.hf, hookpoint.module_path, visit).remove)
        yield


def _forward(lm: LanguageModel, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
    if input_ids.shape[1] > lm.context:
        raise UsageError(
            f"rows of {input_ids.shape[1]} tokens: {lm.identity.name} reads at most {lm.context}"
        )
    mask = None if attention_mask is None else attention_mask.to(lm.device)
    return lm.hf(input_ids=input_ids.to(lm.device), attention_mask=mask, use_cache=False)


def _run_to_unembedding(lm: LanguageModel, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    seen: list[Tensor] = []

    def read(_: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise _Stop

    head = lm.hf.get_output_embeddings()
    if head is None:
        raise SaelabError(f"{lm.identity.name} has no unembedding: it is not a model that predicts tokens")
    handle = head.register_forward_pre_hook(read)
    try:
        with suppress(_Stop):
            _forward(lm, input_ids, attention_mask)
    finally:
        handle.remove()
    return seen[0]


def _check_all_seen(lm: LanguageModel, seen: Activations, hookpoints: Sequence[Hookpoint]) -> None:
    for hookpoint in hookpoints:
        if hookpoint not in seen:
            raise SaelabError(
                f"{hookpoint.module_path} was not reached in a forward pass of {lm.identity.name}"
            )
