"""What packing needs to know of a tokenizer: how rows begin, which tokens are special, plain text to ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from saelab.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def own_bos_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that the tokenizer itself begins texts with: BOS, else CLS; None where it has neither."""
    for token in (tokenizer.bos_token_id, tokenizer.cls_token_id):
        if isinstance(token, int):
            return token
    return None


def bos_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that begins rows and documents: BOS, else CLS (BERT), else EOS.

    Raises:
        UsageError: The tokenizer has none of them.
    """
    own = own_bos_token_id(tokenizer)
    if own is not None:
        return own
    if isinstance(tokenizer.eos_token_id, int):
        return tokenizer.eos_token_id
    raise UsageError(
        "packing: the tokenizer has neither a BOS, a CLS nor an EOS token to begin rows with; set its bos_token"
    )


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """Return the ids of all tokens that are marks and no text, ascending."""
    marked = (token for token, facts in tokenizer.added_tokens_decoder.items() if facts.special)
    return np.array(sorted({*marked, *tokenizer.all_special_ids}), dtype=np.int64)


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """Return the tokens of texts; one that spells a special token is read as plain text."""
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )
    return [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]
