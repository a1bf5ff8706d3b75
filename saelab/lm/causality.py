"""Whether a model reads from left to right, found by trying: a later token must not change what is before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from saelab.lm.calls import call_with_tokens, input_embeddings
from saelab.lm.hooks import Hookpoint
from saelab.lm.sites import read

# In a model that reads both ways, an attention module's output moves about as much at earlier
# positions as at the changed one; rounding (mixtures of experts in half precision) moves it by far less.
_SHARE_THAT_IS_NO_ROUNDING = 0.1


def is_causal(model: nn.Module, hookpoints: Sequence[Hookpoint]) -> bool:
    """Tell whether activations depend on the tokens up to their own position only.

    Two rows that differ in their last token are run one after the other. A configuration's word
    for it is not needed, so this holds for any module.

    Args:
        model: Reads tokens.
        hookpoints: Where to look: activations `[1, length, d]`.
    """
    embeddings = input_embeddings(model)
    n_tokens = getattr(embeddings, "num_embeddings", 5)
    places = [hookpoint.module_path for hookpoint in hookpoints]
    # Whole numbers modulo the vocabulary, for models of three tokens.
    rows = [torch.tensor([[1, 2, last]]) % n_tokens for last in (3, 4)]
    first, second = (read(model, places, lambda row=row: call_with_tokens(model, row)) for row in rows)
    for place in places:
        # The median over the dimensions: a few of them are huge in most models, and so is their rounding.
        change = (first[place] - second[place]).float().abs().median(dim=-1).values[0]
        if change[:-1].max() > _SHARE_THAT_IS_NO_ROUNDING * change[-1]:
            return False
    return True
