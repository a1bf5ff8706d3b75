"""How much memory and disk a training needs, known before it starts, and how many passes that takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from saelab.activations.source import ActivationSource
from saelab.errors import SaelabError
from saelab.memory import available_memory_bytes
from saelab.training.config import TrainConfig
from saelab.training.initialise import MEDIAN_SAMPLE
from saelab_kernels.footprint import training_footprint

FLOAT32 = 4
SAMPLE_COPIES = 4
"""Copies of the sample in float64 while the median is computed."""
OWN_COPIES = 4
"""A recipe's own parameters, their gradients and two moments."""
CHECKPOINTS = 5
"""Checkpoints that are on the disk at the same time, at most."""


@dataclass(frozen=True, kw_only=True)
class MemberCost:
    """What one SAE needs, in bytes."""

    parameters: int
    """Number of trained numbers."""
    held_bytes: int
    """Weights, moments and perhaps gradients on its device, as long as it is trained."""
    working_bytes: int
    """Encoder tiles and batch on its device: needed by one SAE at a time."""
    host_bytes: int
    """Sample and the copy that a checkpoint is written from, in the machine's memory; one SAE at a time."""
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


def cost_of(config: TrainConfig, source: ActivationSource) -> MemberCost:
    """Compute what one SAE needs."""
    d_in = sum(source.hook(hook).d_in for hook in config.input_hooks)
    d_out = sum(source.hook(hook).d_in for hook in config.target_hooks)
    own = config.recipe.own_numbers(d_in, d_out, config.width)
    parameters = (d_in + d_out + 1) * config.width + d_out + own
    aux = config.recipe.traits.aux and bool(config.dead.coefficient)
    footprint = training_footprint(
        max(d_in, d_out),
        config.width,
        config.batch,
        config.device,
        k=config.recipe.to_json().get("k", 0),
        aux_k=(config.dead.aux_k or max(1, d_out // 2)) if aux else 0,
    )
    held = parameters * FLOAT32 if config.recipe.traits.held_gradients else 0
    written_aside = d_in * config.width  # a row-major copy while a checkpoint is written
    return MemberCost(
        parameters=parameters,
        held_bytes=footprint.held + held + OWN_COPIES * own * FLOAT32,
        working_bytes=footprint.working,
        host_bytes=written_aside * FLOAT32 + SAMPLE_COPIES * MEDIAN_SAMPLE * max(d_in, d_out) * 8,
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
    budget = _Budget.of(first.device, available)
    passes: list[list[str]] = []
    for name, config in members.items():
        if passes and budget.holds(_need([members[n] for n in passes[-1]] + [config], source)):
            passes[-1].append(name)
            continue
        if not budget.holds(_need([config], source)):
            raise _too_large(config, source, budget)
        passes.append([name])
    costs = {name: cost_of(config, source) for name, config in members.items()}
    needs = [_need([members[name] for name in names], source) for names in passes]
    return TrainPlan(
        passes=tuple(map(tuple, passes)),
        parameters=sum(cost.parameters for cost in costs.values()),
        memory_bytes=max(need.on_device + need.on_host for need in needs),
        disk_bytes=sum(CHECKPOINTS * c.checkpoint_bytes + c.parameters * FLOAT32 for c in costs.values()),
        steps=first.steps,
    )


class _Need(NamedTuple):
    """Memory of one pass, in bytes."""

    on_device: int
    on_host: int


@dataclass(frozen=True)
class _Budget:
    """Memory that there is, in bytes; None where that is not known."""

    device: int | None
    host: int | None
    is_one: bool
    """Whether the device's memory is the machine's own."""

    @classmethod
    def of(cls, device: str, available: int | None) -> _Budget:
        if device.startswith("cuda"):
            on_device = available_memory_bytes(device) if available is None else available
            return cls(on_device, available_memory_bytes(), False)
        both = available_memory_bytes() if available is None else available
        return cls(both, both, True)

    def holds(self, need: _Need) -> bool:
        return self.lacks(need) is None

    def lacks(self, need: _Need) -> tuple[int, int] | None:
        """Return what is needed and what there is, where that is too little."""
        if self.is_one:
            need = _Need(need.on_device + need.on_host, 0)
        for wanted, free in ((need.on_device, self.device), (need.on_host, self.host)):
            if free is not None and wanted > free:
                return wanted, free
        return None


def _need(configs: list[TrainConfig], source: ActivationSource) -> _Need:
    costs = [cost_of(config, source) for config in configs]
    hooks = {hook for config in configs for hook in config.all_hooks}
    pools = source.pool_bytes(hooks, configs[0].pool_rows)
    return _Need(
        on_device=sum(cost.held_bytes for cost in costs) + max(cost.working_bytes for cost in costs),
        on_host=max(cost.host_bytes for cost in costs) + pools,
    )


def _too_large(config: TrainConfig, source: ActivationSource, budget: _Budget) -> SaelabError:
    needed, free = budget.lacks(_need([config], source)) or (0, 0)

    def fits(**changes: int) -> bool:
        return budget.holds(_need([replace(config, **changes)], source))

    if fits(width=1):
        what, largest = "width", _largest(config.width, lambda width: fits(width=width))
    else:
        rows = _largest(config.pool_rows, lambda rows: fits(width=1, pool_rows=rows))
        what, largest = "pool_rows", rows
    return SaelabError(
        f"{what} {getattr(config, what):,} needs {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free; "
        f"the largest {what} that fits is {largest:,}"
    )


def _largest(too_many: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number below ``too_many`` that fits; 0 where none does."""
    low, high = 0, too_many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
