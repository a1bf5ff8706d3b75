"""How much memory and disk a run needs, known before it starts."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from saelab.activations.stream import POOL_BYTES
from saelab.errors import SaelabError
from saelab.training.config import TrainConfig
from saelab.training.initialise import MEDIAN_SAMPLE
from saelab_kernels.backends.stock_tiles import TILE_ROWS_CPU

MEMORY_FACTS = Path("/proc/meminfo")
"""Where Linux says how much memory is free; other systems have no such file."""
FLOAT32 = 4
COPIES = 4
"""Weights, gradients and Adam's two moments."""
SAMPLE_COPIES = 4
"""Copies of the sample in float64 while the median is computed."""


@dataclass(frozen=True)
class TrainPlan:
    """What a run needs, in bytes."""

    parameters: int
    """Number of trained numbers."""
    weights_and_moments_bytes: int
    """Weights, gradients and moments."""
    buffers_bytes: int
    """Encoder tiles, the batch, and the pool in which rows are mixed."""
    checkpoint_bytes: int
    """One checkpoint on disk; up to five are there for a moment."""
    steps: int
    """Optimiser steps."""

    @property
    def memory_bytes(self) -> int:
        """Memory in all."""
        return self.weights_and_moments_bytes + self.buffers_bytes

    @property
    def disk_bytes(self) -> int:
        """Disk space in all."""
        return 5 * self.checkpoint_bytes + self.parameters * FLOAT32

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return asdict(self) | {"memory_bytes": self.memory_bytes, "disk_bytes": self.disk_bytes}


def plan_training(config: TrainConfig, d_in: int) -> TrainPlan:
    """Compute what a run needs."""
    parameters = 2 * d_in * config.width + config.width + d_in
    buffers = 2 * TILE_ROWS_CPU * config.width + 8 * config.batch * d_in
    written_aside = d_in * config.width  # a row-major copy while a checkpoint is written
    return TrainPlan(
        parameters=parameters,
        weights_and_moments_bytes=COPIES * parameters * FLOAT32,
        buffers_bytes=(buffers + written_aside) * FLOAT32
        + SAMPLE_COPIES * MEDIAN_SAMPLE * d_in * 8
        + 2 * POOL_BYTES,
        checkpoint_bytes=3 * parameters * FLOAT32 + 8 * config.width,
        steps=config.steps,
    )


def require_memory(config: TrainConfig, d_in: int, available: int | None = None) -> TrainPlan:
    """Refuse a run that cannot fit, naming the largest width that does.

    Raises:
        SaelabError: More memory is needed than the machine has free.
    """
    plan = plan_training(config, d_in)
    free = available_memory_bytes(config.device) if available is None else available
    if free is not None and plan.memory_bytes > free:
        one, two = (plan_training(replace(config, width=width), d_in).memory_bytes for width in (1, 2))
        largest = max(0, (free - one) // (two - one))
        raise SaelabError(
            f"width {config.width:,} needs {plan.memory_bytes / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free; "
            f"the largest width that fits is about {largest:,}"
        )
    return plan


def available_memory_bytes(device: str = "cpu") -> int | None:
    """Return the memory that can still be used on a device, or None where that is not known."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":", 1) for line in MEMORY_FACTS.read_text().splitlines())
    except OSError:
        return None
    return int(lines["MemAvailable"].split()[0]) * 1024


def peak_memory_bytes() -> int:
    """Return the largest memory that this process has had so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
