"""`saelab cache MODEL TEXT`: activations to disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from saelab.activations.spec import CacheConfig
from saelab.cli.harvest_options import HarvestOptions
from saelab.cli.options import Common, OptionalCount, Result
from saelab.errors import UsageError
from saelab.quantities import format_bytes
from saelab.text.documents import HELDOUT_SHARE

if TYPE_CHECKING:
    from saelab.activations.store import Store


OWN_FILES = (".npy", ".safetensors")
FOR_OWN_FILES = {"model", "at", "out", "dtype", "heldout_share", "json", "debug"}
"""Options that also hold where MODEL is a file of activations."""


@dataclass(frozen=True, kw_only=True)
class Options(HarvestOptions, Common):
    """Write a model's activations on a text to disk; the same command goes on, and several processes share it."""

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]]
    """``embedded``, a folder in the Hugging Face layout, or a hub name; or your own activations, a .npy or
    .safetensors file."""
    text: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="TEXT")]] = None
    """``stdlib``, a .txt, .jsonl(.gz) or .parquet file, a folder or glob of them, or a hub data set."""
    at: tuple[str, ...] = ()
    """Hookpoints in either spelling, patterns too (``blocks.{4..8}.hook_resid_post``); one forward pass serves all."""
    tokens: OptionalCount = None
    """Activations to keep of each hookpoint, for example 1M; more than a store has extends it."""
    out: Path
    """Folder of the store."""
    loss: bool = False
    """Also store the next-token loss of every token."""
    gradients: bool = False
    """Also store gradients of the summed next-token loss."""
    dry_run: bool = False
    """Print the plan and do nothing."""


def run(options: Options) -> Result:
    """Run the command."""
    if Path(options.model).suffix.lower() in OWN_FILES:
        return _run_on_file(options)
    if options.text is None or options.tokens is None:
        raise UsageError(
            f"{'TEXT' if options.text is None else '--tokens N'} is missing; see saelab cache --help"
        )
    from saelab.activations.cache import cache_activations
    from saelab.activations.plan import require_whole_plan
    from saelab.interrupts import stop_on_signals

    config = CacheConfig(
        **options.harvest_settings(options.model, options.text),
        at=options.at,
        tokens=options.tokens,
        loss=options.loss,
        gradients=options.gradients,
    )
    if options.dry_run:
        plan = require_whole_plan(config, options.out)
        text = (
            f"{plan.rows:,} activations at {', '.join(hook.alias or hook.module_path for hook in plan.hooks)}, "
            f"{format_bytes(plan.disk_bytes)} on disk, "
            f"{format_bytes(plan.memory_bytes + plan.text_bytes)} of memory"
        )
        if plan.device_memory_bytes:
            text += f", {format_bytes(plan.device_memory_bytes)} on the model's device"
        if plan.model_bytes is None:
            text += " (the model is not on this machine yet: its weights come on top)"
        return Result({"plan": asdict(plan)}, text)
    with stop_on_signals() as stop:
        store = cache_activations(config, options.out, stop=stop)
    return Result(*describe_store(store))


def _run_on_file(options: Options) -> Result:
    """Make a store of a file of activations."""
    from saelab.activations.store import Store

    for field in fields(options):
        if field.name not in FOR_OWN_FILES and getattr(options, field.name) != field.default:
            name = "TEXT" if field.name == "text" else "--" + field.name.replace("_", "-")
            raise UsageError(f"{name} says how a model reads text; {options.model} is a file of activations")
    share = HELDOUT_SHARE if options.heldout_share is None else options.heldout_share
    store = Store.from_file(
        options.out, options.model, at=options.at, heldout_share=share, dtype=options.dtype
    )
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
            f"{hook.d_in}, median norm {statistics.median_norm:.3g}, largest norm {statistics.max_norm:.3g}"
        )
    lines += [f"  note: {note}" for note in store.notes]
    data = {"store": str(store.path), "identity": store.identity, "hooks": hooks, "notes": list(store.notes)}
    return data, "\n".join([f"store {store.path}", *lines])
