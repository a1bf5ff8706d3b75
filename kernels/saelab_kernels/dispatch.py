"""Backends by name: the one place that knows which implementations exist."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from saelab_kernels.code import SparseCode
    from saelab_kernels.gradients import GradientBuffers, Gradients
    from saelab_kernels.select import Selection, SelectRequest
    from saelab_kernels.shapes import Tensor

DEFAULT = "torch"
"""The backend behind `backend=None`."""

_MODULES = {
    "torch": "saelab_kernels.backends.stock",
    "reference": "saelab_kernels.backends.reference",
}


@runtime_checkable
class Backend(Protocol):
    """The three operators. Arguments are checked before they come here and need no gradient."""

    def encode_select(self, request: SelectRequest) -> Selection:
        """See `select.encode_select`."""
        ...

    def decode(self, code: SparseCode, W_dec: Tensor, b_dec: Tensor | None) -> Tensor:
        """See `decode.decode`."""
        ...

    def code_gradients(
        self,
        code: SparseCode,
        x: Tensor,
        W_dec: Tensor,
        g_out: Tensor | None,
        g_values: Tensor | None,
        buffers: GradientBuffers,
        accumulate: bool,
    ) -> Gradients:
        """See `gradients.code_gradients`; fills `buffers`."""
        ...


def available_backends() -> tuple[str, ...]:
    """Names that `backend=` takes, the default first."""
    return tuple(_MODULES)


def get_backend(name: str | None) -> Backend:
    """The backend called `name`, or the default for None.

    Raises:
        ValueError: there is no backend of this name.
    """
    name = DEFAULT if name is None else name
    if name not in _MODULES:
        raise ValueError(f"unknown backend {name!r}; available: {', '.join(_MODULES)}")
    return import_module(_MODULES[name]).BACKEND
