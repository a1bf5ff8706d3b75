"""From a model's tokenizer and a configuration to packed rows: the same for a store and a live stream."""

from __future__ import annotations

from collections.abc import Iterable

from saelab.activations.spec import HarvestConfig
from saelab.errors import UsageError
from saelab.lm.load import LanguageModel
from saelab.text.chat import chat_template_of
from saelab.text.documents import Document
from saelab.text.packing import CHARACTERS_PER_CALL, KeepRule, NoTokensError, TokenSequences, pack

CHARACTERS_PER_TOKEN = 8
"""More than most tokens have: what is read too far is little."""


def require_context(config: HarvestConfig, lm: LanguageModel) -> None:
    """Refuse rows that are longer than the model reads, or whose documents would see one another both ways.

    In a model that reads from left to right a packed document sees those before it, as in its
    training. In any other it would also see what follows, and the activations of a text would hang
    on its neighbours.

    Raises:
        UsageError: As above, or it cannot be given text at all.
    """
    if not lm.reads_tokens or lm.optional_tokenizer is None:
        hint = "" if lm.reads_tokens else "; saelab.cache_inputs in Python gives it batches of its own inputs"
        raise UsageError(f"cache: {lm.identity.name} has no tokenizer, so it cannot be given text{hint}")
    if config.packing == "packed" and not lm.causal:
        raise UsageError(
            f"cache: {lm.identity.name} reads in both directions, so packed documents would see one another; "
            "choose the packing document (--packing document)"
        )
    if lm.context is not None and config.context > lm.context:
        raise UsageError(
            f"cache: context is {config.context}, {lm.identity.name} reads at most {lm.context} tokens"
        )


def pack_rows(
    config: HarvestConfig, lm: LanguageModel, documents: Iterable[Document], tokens: int, *, cut: bool
) -> TokenSequences:
    """Pack documents until so many tokens are kept.

    Args:
        config: Packing, context and masks.
        lm: The model.
        documents: Read only as far as needed, and a little further.
        tokens: Tokens that are wanted.
        cut: End exactly there; otherwise with the document that reaches it.

    Raises:
        NoTokensError: No document has a token.
    """
    return pack(
        documents,
        lm.tokenizer,
        context=config.context,
        packing=config.packing,
        max_kept=tokens,
        cut=cut,
        characters_per_call=min(CHARACTERS_PER_CALL, CHARACTERS_PER_TOKEN * tokens),
        keep_rule=KeepRule(mask_bos=config.mask_bos, mask_first_positions=config.mask_first_positions),
        chat_template=chat_template_of(config.text),
    )


def pack_for(
    config: HarvestConfig, lm: LanguageModel, documents: Iterable[Document], whole_documents_of: int
) -> TokenSequences | None:
    """Like `pack_rows` for whole documents; None where no document has a token."""
    try:
        return pack_rows(config, lm, documents, whole_documents_of, cut=False)
    except NoTokensError:
        return None
