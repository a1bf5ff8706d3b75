"""How much memory and disk a training needs, known before it starts, and how many passes that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from saelab.activations.source import ActivationSource
from saelab.errors import SaelabError
from saelab.memory import available_memory_bytes
from saelab.training.config import TrainConfig
from saelab.training.initialise import MEDIAN_SAMPLE
from saelab_kernels.backends.stock_tiles import TILE_ROWS_CPU

FLOAT32 = 4
COPIES = 4
"""Weights, gradients and Adam's two moments."""
SAMPLE_COPIES = 4
"""Copies of the sample in float64 while the median is computed."""
CHECKPOINTS = 5
"""Checkpoints that are on the disk at the same time, at most."""


@dataclass(frozen=True, kw_only=True)
class MemberCost:
    """What one SAE needs, in bytes."""

    parameters: int
    """Number of trained numbers."""
    held_bytes: int
    """Weights, gradients and moments, as long as it is trained."""
    working_bytes: int
    """Encoder tiles, batch, sample: needed by one SAE at a time."""
    checkpoint_bytes: int
    """Its part of one checkpoint on disk."""


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """What a training takes, all SAEs together."""

    passes: tuple[tuple[str, ...], ...]
    """The SAEs that are trained together, pass after pass."""
    parameters: int
    """Number of trained numbers."""
    memory_bytes: int
    """Memory of the largest pass; a language model that is run beside it comes on top."""
    disk_bytes: int
    """Checkpoints and finished SAEs."""
    steps: int
    """Optimiser steps of each pass."""

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return asdict(self) | {"passes": [list(names) for names in self.passes]}


def cost_of(config: TrainConfig, d_in: int) -> MemberCost:
    """Compute what one SAE needs."""
    parameters = 2 * d_in * config.width + config.width + d_in
    tiles = 2 * TILE_ROWS_CPU * config.width + 8 * config.batch * d_in
    written_aside = d_in * config.width  # a row-major copy while a checkpoint is written
    return MemberCost(
        parameters=parameters,
        held_bytes=COPIES * parameters * FLOAT32,
        working_bytes=(tiles + written_aside) * FLOAT32 + SAMPLE_COPIES * MEDIAN_SAMPLE * d_in * 8,
        checkpoint_bytes=3 * parameters * FLOAT32 + 8 * config.width,
    )


def plan_training(
    members: Mapping[str, TrainConfig], source: ActivationSource, available: int | None = None
) -> TrainPlan:
    """Divide SAEs into as few passes as fit into memory, in their order.

    Args:
        members: Configurations by name; all agree in what the loop reads of them.
        source: Where the activations come from.
        available: Memory that may be used; what is free on the device where not given.

    Raises:
        SaelabError: One SAE alone needs more; the message names the largest width that fits.
    """
    first = next(iter(members.values()))
    free = available_memory_bytes(first.device) if available is None else available
    passes: list[list[str]] = []
    sizes: list[int] = []
    for name, config in members.items():
        if passes:
            size = _pass_bytes([members[n] for n in passes[-1]] + [config], source)
            if free is None or size <= free:
                passes[-1].append(name)
                sizes[-1] = size
                continue
        alone = _pass_bytes([config], source)
        if free is not None and alone > free:
            raise _too_large(config, source, alone, free)
        passes.append([name])
        sizes.append(alone)
    costs = {name: cost_of(config, source.hook(config.hook).d_in) for name, config in members.items()}
    return TrainPlan(
        passes=tuple(map(tuple, passes)),
        parameters=sum(cost.parameters for cost in costs.values()),
        memory_bytes=max(sizes),
        disk_bytes=sum(CHECKPOINTS * c.checkpoint_bytes + c.parameters * FLOAT32 for c in costs.values()),
        steps=first.steps,
    )


def _pass_bytes(configs: list[TrainConfig], source: ActivationSource) -> int:
    costs = [cost_of(config, source.hook(config.hook).d_in) for config in configs]
    pools = sum(source.pool_bytes(hook, configs[0].pool_rows) for hook in {c.hook for c in configs})
    return sum(cost.held_bytes for cost in costs) + max(cost.working_bytes for cost in costs) + pools


def _too_large(config: TrainConfig, source: ActivationSource, needed: int, free: int) -> SaelabError:
    one, two = (_pass_bytes([replace(config, width=width)], source) for width in (1, 2))
    largest = max(0, (free - one) // (two - one))
    return SaelabError(
        f"width {config.width:,} needs {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free; "
        f"the largest width that fits is about {largest:,}"
    )
