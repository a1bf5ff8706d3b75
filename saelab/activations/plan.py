"""What a cache will take, before anything is loaded or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saelab.activations.spec import ITEM_BYTES, CacheConfig

if TYPE_CHECKING:
    from saelab.lm.hooks import Hookpoint

_TOKEN_INDEX_BYTES = 8
_TOKEN_BYTES = 4 + 1  # token id, keep bit rounded up
_LOSS_BYTES = 2 * 4  # parts and their joined copy lie side by side for a moment


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """Upper bounds of what a cache takes; less where the text ends early."""

    hooks: tuple[Hookpoint, ...]
    """The hookpoints."""
    rows: int
    """Activation rows of each hookpoint."""
    disk_bytes: int
    """Size of the finished store."""
    memory_bytes: int
    """Shard buffers and the activations of one batch; the model and the text come on top."""


def plan_cache(config: CacheConfig) -> CachePlan:
    """Plan a cache from the model's configuration, without its weights and without reading text.

    Raises:
        SaelabError: There is no such model.
        UsageError: A hookpoint is unknown.
    """
    from saelab.lm.hooks import list_hookpoints, resolve

    available = list_hookpoints(config.model)
    hooks = tuple(dict.fromkeys(resolve(name, available) for name in config.at))
    width = sum(hook.d_in for hook in hooks)
    copies = 2 if config.gradients else 1
    batch_tokens = config.batch_rows * config.context
    shard_rows = min(config.tokens, config.batches_per_shard * batch_tokens)
    # While statistics are gathered, a shard and its training rows are held.
    shard_bytes = 2 * bytes_of_rows(config, hooks, shard_rows)
    return CachePlan(
        hooks=hooks,
        rows=config.tokens,
        disk_bytes=bytes_of_rows(config, hooks, config.tokens) + bytes_of_tokens(config, config.tokens),
        memory_bytes=shard_bytes + batch_tokens * width * 4 * copies,
    )


def bytes_of_rows(config: CacheConfig, hooks: Sequence[Hookpoint], n_rows: int) -> int:
    """Return the size on disk of so many activation rows of all hookpoints."""
    copies = 2 if config.gradients else 1
    return n_rows * sum(hook.d_in * ITEM_BYTES[config.dtype] * copies + _TOKEN_INDEX_BYTES for hook in hooks)


def bytes_of_tokens(config: CacheConfig, n_tokens: int) -> int:
    """Return the size on disk of what is stored of so many tokens, kept or not, beside activations."""
    return n_tokens * (_TOKEN_BYTES + (_LOSS_BYTES if config.stores_loss else 0))
