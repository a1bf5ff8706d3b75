"""What a cache will take, before anything is loaded or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from saelab.activations.spec import ITEM_BYTES, CacheConfig
from saelab.errors import SaelabError
from saelab.memory import available_memory_bytes
from saelab.quantities import format_bytes
from saelab.storage.files import free_bytes, require_free_space

if TYPE_CHECKING:
    from saelab.lm.hooks import Hookpoint

_TOKEN_INDEX_BYTES = 8
_TOKEN_BYTES = 4 + 1  # token id, keep bit rounded up
_ROLE_BYTES = 1
_LOSS_BYTES = 2 * 4  # parts and their joined copy lie side by side for a moment
_PACKING_BYTES = 24
"""Memory for each token while rows are packed: ids twice, marks, and a running count."""
_FORWARD_COPIES = 6
"""Activations of the model's widest place that a forward pass holds at a time, about."""


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """Upper bounds of what a cache takes; less where the text ends early."""

    hooks: tuple[Hookpoint, ...]
    """The hookpoints."""
    rows: int
    """Activation rows of each hookpoint."""
    disk_bytes: int
    """Size of the finished store."""
    model_bytes: int | None
    """Weights of the model; None where they are not on this machine yet."""
    text_bytes: int
    """Memory that the packed text takes."""
    memory_bytes: int
    """Shard buffers and one batch; on the CPU the model and its forward pass too."""
    device_memory_bytes: int
    """Model and forward pass on the accelerator; 0 on the CPU."""


def plan_cache(config: CacheConfig) -> CachePlan:
    """Plan a cache from the model's configuration and headers, without its weights and without reading text.

    Raises:
        SaelabError: There is no such model.
        UsageError: A hookpoint is unknown.
    """
    from saelab.lm.devices import choose_device
    from saelab.lm.hooks import resolve_all
    from saelab.lm.probe import list_hookpoints
    from saelab.lm.size import weights_bytes

    available = list_hookpoints(config.model)
    hooks = resolve_all(config.at, available)
    model = weights_bytes(config.model)
    widths = [hook.d_in for hook in available]
    batch_tokens = config.batch_rows * config.context
    shard_rows = min(config.tokens, config.batches_per_shard * batch_tokens)
    # While statistics are gathered, a shard and its training rows are held.
    buffers = 2 * bytes_of_rows(config, hooks, shard_rows)
    captured = batch_tokens * sum(hook.d_in for hook in hooks) * 4 * (2 if config.gradients else 1)
    # Gradients need what the forward pass computed, at every place.
    forward = batch_tokens * 4 * (sum(widths) if config.gradients else _FORWARD_COPIES * max(widths))
    on_cpu = choose_device(config.model.device).type == "cpu"
    where_the_model_is = (model or 0) + forward
    return CachePlan(
        hooks=hooks,
        rows=config.tokens,
        disk_bytes=bytes_of_rows(config, hooks, config.tokens) + bytes_of_tokens(config, config.tokens),
        model_bytes=model,
        text_bytes=config.tokens * _PACKING_BYTES,
        memory_bytes=buffers + captured + (where_the_model_is if on_cpu else 0),
        device_memory_bytes=0 if on_cpu else where_the_model_is,
    )


def require_memory(config: CacheConfig, plan: CachePlan) -> None:
    """Refuse a cache that cannot fit into memory, naming the largest batch that does.

    The text is not counted: it may end before the tokens that are asked for.

    Raises:
        SaelabError: More memory is needed than is free.
    """
    places = {"memory": ("cpu", plan.memory_bytes)}
    if plan.device_memory_bytes and config.model.device_map is None:
        device = "cuda" if config.model.device == "auto" else config.model.device
        places[f"memory on {device}"] = (device, plan.device_memory_bytes)
    for place, (device, needed) in places.items():
        free = available_memory_bytes(device)
        if free is not None and needed > free:
            raise SaelabError(
                f"caching in batches of {config.batch_rows:,} rows needs {format_bytes(needed)} of {place}, "
                f"{format_bytes(free)} are free; {_what_fits(config, device, free)}"
            )


def require_whole_plan(config: CacheConfig, folder: Path) -> CachePlan:
    """Refuse what would not fit if the text holds all tokens that are asked for; for a dry run.

    Raises:
        SaelabError: More memory or disk is needed than is free; the message says how many tokens fit.
        UsageError: A hookpoint is unknown.
    """
    plan = plan_cache(config)
    require_memory(config, plan)
    free = available_memory_bytes()
    if free is not None and plan.memory_bytes + plan.text_bytes > free:
        fits = (free - plan.memory_bytes) // _PACKING_BYTES
        raise SaelabError(
            f"{config.tokens:,} tokens need {format_bytes(plan.memory_bytes + plan.text_bytes)} of memory, "
            f"{format_bytes(free)} are free; {fits:,} tokens fit (--tokens)"
        )
    require_disk(config, plan.hooks, folder, rows=config.tokens, rows_there=0, tokens=config.tokens)
    return plan


def require_disk(
    config: CacheConfig, hooks: Sequence[Hookpoint], folder: Path, *, rows: int, rows_there: int, tokens: int
) -> None:
    """Refuse a cache that cannot fit on the disk, naming the largest that does.

    Args:
        config: What is cached.
        hooks: The hookpoints.
        folder: The store's folder.
        rows: Rows that are still to be written.
        rows_there: Rows that are there already.
        tokens: Length of the token stream.

    Raises:
        SaelabError: More space is needed than is free.
    """
    needed = bytes_of_rows(config, hooks, rows) + bytes_of_tokens(config, tokens)
    fits = rows_there + int(max(rows, 1) * free_bytes(folder) / needed)
    require_free_space(folder, needed, "caching", f"free some space, or ask for {fits:,} tokens (--tokens)")


def bytes_of_rows(config: CacheConfig, hooks: Sequence[Hookpoint], n_rows: int) -> int:
    """Return the size on disk of so many activation rows of all hookpoints."""
    copies = 2 if config.gradients else 1
    return n_rows * sum(hook.d_in * ITEM_BYTES[config.dtype] * copies + _TOKEN_INDEX_BYTES for hook in hooks)


def bytes_of_tokens(config: CacheConfig, n_tokens: int) -> int:
    """Return the size on disk of what is stored of so many tokens, kept or not, beside activations."""
    roles = _ROLE_BYTES if config.packing == "conversation" else 0
    return n_tokens * (_TOKEN_BYTES + roles + (_LOSS_BYTES if config.stores_loss else 0))


def _needed(config: CacheConfig, device: str) -> int:
    plan = plan_cache(config)
    return plan.memory_bytes if device == "cpu" else plan.device_memory_bytes


def _what_fits(config: CacheConfig, device: str, free: int) -> str:
    """Name the largest batch that fits."""
    one, now = _needed(replace(config, batch_rows=1), device), _needed(config, device)
    if one > free:
        return "not even one row fits: choose a smaller model, or fewer or narrower hookpoints"
    # Needs are convex in the batch, so that a straight line between two points never promises too much.
    fits = 1 + int((config.batch_rows - 1) * (free - one) / (now - one))
    return f"{fits:,} rows fit (--batch-rows)"
