"""How much memory there is, and how much this process has used."""

from __future__ import annotations

import sys
from pathlib import Path

MEMORY_FACTS = Path("/proc/meminfo")
"""Where Linux says how much memory is free; other systems have no such file."""


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
