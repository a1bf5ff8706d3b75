"""The loaded model as a TransformerLens `TransformerBridge`, for notebooks and tools that speak it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from saelab.lm.load import LanguageModel
from saelab.lm.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def to_bridge(lm: LanguageModel) -> TransformerBridge:
    """Wrap a copy of the model in a bridge, without any look at the network.

    It is a copy, with weights of its own, because a bridge replaces the modules of the model that
    it wraps, switches it to eager attention, and may rewrite its weights on request
    (`enable_compatibility_mode`). Attention in eager mode makes activations equal to those of `run`
    up to rounding, not bit for bit. Caching does not go through it: `run` is faster.

    Args:
        lm: The model; it is left as it is.
    """
    from transformer_lens.model_bridge import TransformerBridge

    with quiet_transformers():
        return TransformerBridge.boot_transformers(
            lm.identity.name,
            hf_model=copy.deepcopy(lm.hf),
            tokenizer=copy.deepcopy(lm.tokenizer),
            device=lm.device,
            dtype=lm.hf.dtype,
        )
