"""How large a model is in memory, known from the headers of its files before they are read."""

from __future__ import annotations

import math
from typing import Any

import torch

from saelab.lm.devices import choose_device, choose_dtype
from saelab.lm.source import locate
from saelab.lm.spec import ModelSpec


def weights_bytes(spec: ModelSpec) -> int | None:
    """Return the size of a model's weights in the number format in which they will be held.

    None where the weights are not on this machine yet, or cannot be read: loading will tell why.
    """
    import safetensors

    dtype = choose_dtype(spec.dtype, choose_device(spec.device))
    paths = sorted(locate(spec, weights=False).folder.glob("*.safetensors"))
    total = 0
    try:
        for path in paths:
            with safetensors.safe_open(path, "pt") as file:
                total += sum(_bytes_of(file.get_slice(name), dtype) for name in file.keys())  # noqa: SIM118
    except (OSError, safetensors.SafetensorError):
        return None
    return total or None


def _bytes_of(tensor: Any, dtype: torch.dtype | str) -> int:
    saved = {"F64": 8, "F32": 4, "I64": 8, "I32": 4, "F16": 2, "BF16": 2}.get(tensor.get_dtype(), 1)
    return math.prod(tensor.get_shape()) * (dtype.itemsize if isinstance(dtype, torch.dtype) else saved)
