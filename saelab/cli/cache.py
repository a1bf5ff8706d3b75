"""`saelab cache MODEL TEXT`: activations to disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from saelab.activations.spec import CacheConfig
from saelab.cli.options import Common, Count, Result
from saelab.lm.spec import ModelSpec
from saelab.quantities import format_bytes
from saelab.text.spec import TextSpec

if TYPE_CHECKING:
    from saelab.activations.store import Store


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Write a model's activations on a text to disk; the same command goes on where it was stopped."""

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]]
    """``embedded``, a folder in the Hugging Face layout, or a hub name."""
    text: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TEXT")]]
    """``stdlib``, ``stdlib-with-tests``, or a .txt, .jsonl or .parquet file."""
    at: tuple[str, ...]
    """Hookpoints, in either spelling; several are cached from one forward pass."""
    tokens: Count
    """Activations to keep of each hookpoint, for example 1M."""
    out: Path
    """Folder of the store."""
    context: int = 256
    """Tokens in a sequence."""
    packing: Literal["packed", "document"] = "packed"
    """Fill sequences across documents, or start each document in a sequence of its own."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Number format on disk."""
    keep_bos: bool = False
    """Keep activations of the first token of a sequence, which models use as a sink."""
    mask_first_positions: int = 0
    """Leave out so many positions at the start of every sequence."""
    mask_norm_ratio: float | None = None
    """Leave out activations with a norm above this multiple of the median."""
    loss: bool = False
    """Also store the next-token loss of every token."""
    gradients: bool = False
    """Also store gradients of the summed next-token loss."""
    batch_rows: int = 16
    """Sequences in one forward pass."""
    device: str = "auto"
    """Device of the language model."""
    dry_run: bool = False
    """Print the plan and do nothing."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.activations.cache import cache_activations
    from saelab.activations.plan import plan_cache
    from saelab.interrupts import stop_on_signals

    config = CacheConfig(
        model=ModelSpec(name=options.model, device=options.device),
        text=TextSpec(source=options.text),
        at=options.at,
        tokens=options.tokens,
        context=options.context,
        packing=options.packing,
        dtype=options.dtype,
        mask_bos=not options.keep_bos,
        mask_first_positions=options.mask_first_positions,
        mask_norm_ratio=options.mask_norm_ratio,
        loss=options.loss,
        gradients=options.gradients,
        batch_rows=options.batch_rows,
    )
    if options.dry_run:
        plan = plan_cache(config)
        text = (
            f"{plan.rows:,} activations at {', '.join(hook.alias or hook.module_path for hook in plan.hooks)}, "
            f"{format_bytes(plan.disk_bytes)} on disk, {format_bytes(plan.memory_bytes)} of memory beside the model"
        )
        return Result({"plan": asdict(plan)}, text)
    with stop_on_signals() as stop:
        store = cache_activations(config, options.out, stop=stop)
    return Result(*describe_store(store))


def describe_store(store: Store) -> tuple[dict[str, Any], str]:
    """Return what a store holds, as JSON values and as text."""
    hooks, lines = [], []
    for hook in store.hooks:
        statistics = store.statistics(hook)
        train, heldout = (store.n_rows(hook, split) for split in ("train", "heldout"))
        hooks.append(
            {
                "hook": hook.module_path,
                "alias": hook.alias,
                "d_in": hook.d_in,
                "train_rows": train,
                "heldout_rows": heldout,
                "median_norm": statistics.median_norm,
                "outlier_ratio": statistics.outlier_ratio,
            }
        )
        lines.append(
            f"  {hook.alias or hook.module_path}: {train:,} train and {heldout:,} held-out activations of width "
            f"{hook.d_in}, median norm {statistics.median_norm:.3g}, largest norm {statistics.outlier_ratio:.1f}x that"
        )
    data = {"store": str(store.path), "identity": store.identity, "hooks": hooks}
    return data, "\n".join([f"store {store.path}", *lines])
