"""Runs of the model with something else at the kept positions of some hookpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from saelab.activations.rows import joined
from saelab.lm.hooks import Hookpoint
from saelab.lm.load import LanguageModel
from saelab.lm.run import edited, final_hidden
from saelab_kernels.shapes import Bool, Float, Int, Tensor

Edit = Callable[[Tensor], Tensor]


def clean_run(
    lm: LanguageModel,
    hookpoints: Sequence[Hookpoint],
    ids: Int[Tensor, "rows length"],
    kept: Bool[Tensor, "rows length"],
) -> tuple[Float[Tensor, "rows length d"], Float[Tensor, "kept d_in"]]:
    """Run the model as it is.

    Returns:
        What enters the unembedding, and the activations at the kept positions, row by row, with the
        hookpoints joined side by side, in the model's dtype.
    """
    seen: dict[Hookpoint, Tensor] = {}

    def recorder(hookpoint: Hookpoint) -> Edit:
        def record(x: Float[Tensor, "rows length d"]) -> Float[Tensor, "rows length d"]:
            with torch.inference_mode(False):
                seen[hookpoint] = x[kept.to(x.device)].clone()
            return x

        return record

    with edited(lm, {hookpoint: recorder(hookpoint) for hookpoint in hookpoints}):
        hidden = final_hidden(lm, ids)
    parts = [seen[hookpoint] for hookpoint in hookpoints]
    return hidden, joined([part.to(parts[0].device) for part in parts])


def run_with(
    lm: LanguageModel,
    values: Mapping[Hookpoint, Float[Tensor, "*kept d"]],
    ids: Int[Tensor, "rows length"],
    kept: Bool[Tensor, "rows length"],
) -> Float[Tensor, "rows length d"]:
    """Run the model with other activations at the kept positions; what the others hold is not replaced.

    Args:
        lm: The model.
        values: What each hookpoint gets: one vector for each kept position, row by row, or one for all.
        ids: Token ids.
        kept: Where something is replaced.
    """

    def replaced(
        value: Float[Tensor, "*kept d"], x: Float[Tensor, "rows length d"]
    ) -> Float[Tensor, "rows length d"]:
        changed, here = x.clone(), kept.to(x.device)
        changed[here] = value.to(x.device, x.dtype)
        return changed

    with edited(lm, {hookpoint: partial(replaced, value) for hookpoint, value in values.items()}):
        return final_hidden(lm, ids)


def by_hookpoint(
    hookpoints: Sequence[Hookpoint], x: Float[Tensor, "*kept d_out"]
) -> dict[Hookpoint, Float[Tensor, "*kept d"]]:
    """Give each hookpoint its part of what was joined side by side."""
    parts = x.split([hookpoint.d_in for hookpoint in hookpoints], dim=-1)
    return dict(zip(hookpoints, parts, strict=True))
