"""The map from final hidden states to logits, as data, so that logits can be made in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from saelab.lm.calls import call_with_tokens
from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True)
class Unembedding:
    """The map from final hidden states to logits."""

    weight: Float[Tensor, "V d"]
    """One row a token of the vocabulary, in the model's dtype."""
    bias: Float[Tensor, " V"] | None = None
    """Added to the logits, where the model has one."""
    soft_cap: float | None = None
    """Logits z become `soft_cap * tanh(z / soft_cap)` (Gemma 2, arXiv 2408.00118, section 2)."""

    def logits(
        self, hidden: Float[Tensor, "*rows d"], start: int = 0, stop: int | None = None
    ) -> Float[Tensor, "*rows width"]:
        """Return the float32 logits of the tokens ``start`` to ``stop``, by default of all."""
        bias = None if self.bias is None else self.bias[start:stop].float()
        logits = F.linear(hidden.float(), self.weight[start:stop].float(), bias)
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


@torch.no_grad()
def read_unembedding(model: nn.Module) -> Unembedding | str:
    """Read a model's unembedding, and compare it with the model's own logits on two tokens.

    Families differ in what they do around the matrix (Cohere and Granite scale the logits), and a
    scale that was missed would make every loss wrong silently.

    Args:
        model: Reads tokens from left to right.

    Returns:
        The map, or why there is none, as the end of a sentence about the model: the logits must be
        `hidden @ weight.T + bias` with an optional soft cap.
    """
    getter = getattr(model, "get_output_embeddings", None)
    head = None if getter is None else getter()
    if head is None:
        return "has no unembedding that saelab can find"
    if not isinstance(head, nn.Linear):
        return f"makes its logits in a {type(head).__name__}, which saelab does not know"
    if head.weight.is_meta:
        return "keeps its unembedding off its devices (see device_map)"
    config: Any = model.config
    result = Unembedding(head.weight, head.bias, getattr(config, "final_logit_softcapping", None))
    entering: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    try:
        expected = call_with_tokens(model, torch.tensor([[1, 2]])).logits.float()
    finally:
        handle.remove()
    # Loose enough for bfloat16; what is to be found is off by far more.
    found = result.logits(entering[0].to(head.weight.device)).to(expected.device)
    if torch.allclose(found, expected, rtol=0, atol=0.02 * float(expected.abs().max())):
        return result
    return "does more to its logits than a linear map and a soft cap"
