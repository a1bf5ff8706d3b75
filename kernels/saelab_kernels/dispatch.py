"""Backends by name: the one place that knows which implementations exist, and chooses one by the device."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch

from saelab_kernels.contract import Backend
from saelab_kernels.shapes import Tensor

OVERRIDE = "SAELAB_KERNELS"
"""Environment variable that names the backend behind `backend=None`."""


class BackendError(ValueError):
    """A backend was asked for that this machine does not have."""


_MODULES = {
    "torch": ("saelab_kernels.backends.stock", "BACKEND"),
    "cpu": ("saelab_kernels.backends.cpu", "BACKEND"),
    "cpu-float32": ("saelab_kernels.backends.cpu", "FLOAT32"),
    "triton": ("saelab_kernels.backends.triton", "BACKEND"),
    "reference": ("saelab_kernels.backends.reference", "BACKEND"),
}
"""Module of each backend, and its object there."""


def available_backends() -> tuple[str, ...]:
    """Names that `backend=` takes on this machine."""
    return tuple(name for name in _MODULES if _runs_here(name))


def choose_backend(device: torch.device | str) -> str:
    """The name behind `backend=None` for tensors on a device.

    `SAELAB_KERNELS` if it is set; else "triton" on CUDA and "cpu" on the processor where Triton or numba is
    installed; "torch" otherwise.

    Raises:
        BackendError: the variable names a backend that this machine does not have.
    """
    named = os.environ.get(OVERRIDE)
    if named:
        if named not in available_backends():
            raise BackendError(f"{OVERRIDE}={named}: available here: {', '.join(available_backends())}")
        return named
    fused = {"cuda": "triton", "cpu": "cpu"}.get(torch.device(device).type)
    return fused if fused is not None and _runs_here(fused) else "torch"


def get_backend(name: str | None, beside: Tensor) -> Backend:
    """The backend called `name`, or the one for the device of the tensor `beside`.

    Raises:
        BackendError: there is no backend of this name here.
    """
    name = choose_backend(beside.device) if name is None else name
    if name not in _MODULES:
        raise BackendError(f"unknown backend {name!r}; available: {', '.join(available_backends())}")
    if not _runs_here(name):
        raise BackendError(
            f"backend {name!r} cannot run here (cpu needs numba, triton needs Triton with a GPU); "
            f"available: {', '.join(available_backends())}"
        )
    module, attribute = _MODULES[name]
    return getattr(import_module(module), attribute)


@cache
def _runs_here(name: str) -> bool:
    if name.startswith("cpu"):
        return find_spec("numba") is not None and find_spec("numpy") is not None
    if name == "triton":
        # The interpreter, for tests, runs Triton's kernels on the processor.
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return find_spec("triton") is not None and (interpreted or torch.cuda.is_available())
    return True
