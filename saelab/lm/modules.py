"""Activations of any `nn.Module` on any inputs: rows with the example and the position that each came from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from saelab.errors import SaelabError, UsageError
from saelab.lm.calls import Batch, call_with_batch, examples_in
from saelab.lm.hooks import Hookpoint, resolve_all
from saelab.lm.probe import batch_hookpoints
from saelab.lm.sites import read
from saelab_kernels.shapes import Bool, Float, Int, Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleActivations:
    """Activations of one batch; row i of every tensor belongs together."""

    activations: dict[Hookpoint, Float[Tensor, "n d"]]
    """One row for each position of each example, in the module's dtype, on the device where they arise."""
    example: Int[Tensor, " n"]
    """Which example each row came from, int64, counted from 0 over all batches."""
    position: Int[Tensor, " n"]
    """Which position inside the example, int64, row by row where there are several dimensions; 0 where none."""

    def keep(self, wanted: Bool[Tensor, " n"]) -> ModuleActivations:
        """Return the rows where ``wanted`` is True, for example ``position == 0``."""
        return ModuleActivations(
            activations={hookpoint: x[wanted.to(x.device)] for hookpoint, x in self.activations.items()},
            example=self.example[wanted],
            position=self.position[wanted],
        )


def iter_activations(
    model: nn.Module, batches: Iterable[Batch], *, at: Sequence[str], channel_dim: int = -1
) -> Iterator[ModuleActivations]:
    """Run a module on batches and read activations at some of its places.

    The forward pass stops after the last place that is asked for. The first batch is run twice: the
    first time to find the module's hookpoints (`saelab.lm.probe.batch_hookpoints` lists them).

    Args:
        model: In evaluation mode. Its parameters decide the device; batches are brought there.
        batches: Tensors, each the module's first argument, or dicts of arguments by name; the first
            dimension of every tensor counts examples. Positions where a dict's ``attention_mask [B,
            positions]`` is 0 are left out.
        at: Places as `resolve_all` takes them: ``encoder.layers.2.output``, ``layers.{0..3}.input``.
        channel_dim: Dimension that is `d`; -1 for `[B, ..., d]`, 1 for maps `[B, d, height, width]`.

    Yields:
        The activations of each batch.

    Raises:
        UsageError: There is no such place, a batch is of another kind, the module is in training
            mode, or the places have different numbers of positions (read those separately).
        SaelabError: A place was not reached, or lost the examples' dimension.
    """
    if model.training:
        raise UsageError("reading activations: the module is in training mode; call .eval() first")
    hookpoints, n_examples = None, 0
    for batch in batches:
        count = examples_in(batch)
        if hookpoints is None:
            hookpoints = resolve_all(at, batch_hookpoints(model, batch, channel_dim=channel_dim))
        places = [hookpoint.module_path for hookpoint in hookpoints]
        seen = read(model, places, lambda batch=batch: call_with_batch(model, batch))
        maps = {}
        for hookpoint in hookpoints:
            x = seen.get(hookpoint.module_path)
            if x is None or len(x) != count:
                what = "was not reached" if x is None else f"has shape {tuple(x.shape)} for {count} examples"
                raise SaelabError(f"reading activations: {hookpoint.module_path} {what}")
            maps[hookpoint] = x.movedim(channel_dim, -1)
        yield _rows(maps, batch, count, n_examples)
        n_examples += count


def _rows(
    maps: dict[Hookpoint, Tensor], batch: Batch, n_examples: int, first_example: int
) -> ModuleActivations:
    positions = {hookpoint: math.prod(x.shape[1:-1]) for hookpoint, x in maps.items()}
    if len(set(positions.values())) > 1:
        counts = ", ".join(f"{hookpoint.module_path} {n}" for hookpoint, n in positions.items())
        raise UsageError(
            f"reading activations: the places differ in their positions per example ({counts}); "
            "read them one after the other"
        )
    n_positions = next(iter(positions.values()), 0)
    rows = ModuleActivations(
        activations={hookpoint: x.reshape(-1, x.shape[-1]) for hookpoint, x in maps.items()},
        example=first_example + torch.arange(n_examples).repeat_interleave(n_positions),
        position=torch.arange(n_positions).repeat(n_examples),
    )
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if isinstance(mask, Tensor) and mask.shape == (n_examples, n_positions):
        return rows.keep(mask.cpu().bool().flatten())
    return rows
