"""Where a model is put and in what number format: names from options to torch's own."""

from __future__ import annotations

import torch

from saelab.errors import UsageError
from saelab.lm.spec import ModelSpec

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` takes cuda, then mps, then cpu.

    Raises:
        UsageError: There is no such device on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_there in available.items() if is_there))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no device {name!r}; use auto, cuda, cuda:N, mps or cpu") from error
    beyond = device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count()
    if not available.get(device.type, False) or beyond:
        raise UsageError(f"the device {name!r} is not available on this machine; use auto or cpu")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype | str:
    """Return the dtype of that name; ``auto`` is float32 on the CPU, and transformers' ``auto`` elsewhere.

    Raises:
        UsageError: There is no such dtype.
    """
    if name == "auto":
        # Half precision is slow on most CPUs; "auto" means the saved format to transformers.
        return torch.float32 if device.type == "cpu" else "auto"
    if name not in _DTYPES:
        raise UsageError(f"there is no model dtype {name!r}; use auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def placement(spec: ModelSpec) -> tuple[torch.device, torch.dtype | str]:
    """Return the device and dtype that a model is loaded with; see `choose_device` and `choose_dtype`.

    Raises:
        UsageError: There is no such device or dtype here, or a device is named beside a device map.
    """
    device = choose_device(spec.device)
    if spec.device_map is not None and spec.device != "auto":
        raise UsageError(f"device_map {spec.device_map} chooses the devices: leave out device {spec.device}")
    return device, choose_dtype(spec.dtype, device)
