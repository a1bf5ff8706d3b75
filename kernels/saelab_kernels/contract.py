"""What a backend implements. Arguments are checked before they come here and need no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from saelab_kernels.adam_state import AdamOptions, AdamState, Weights
from saelab_kernels.buffers import GradientBuffers, Gradients, GradientTerm, Parts
from saelab_kernels.code import SparseCode
from saelab_kernels.request import Selection, SelectRequest
from saelab_kernels.shapes import Tensor


@runtime_checkable
class Backend(Protocol):
    """The operators. Each gives what the float64 reference gives, to rounding."""

    def encode_select(self, request: SelectRequest) -> Selection:
        """See `select.encode_select`."""
        ...

    def decode(self, code: SparseCode, W_dec: Tensor, b_dec: Tensor | None) -> Tensor:
        """See `decode.decode`."""
        ...

    def decode_error(
        self, code: SparseCode, W_dec: Tensor, b_dec: Tensor | None, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `decode.decode_error`."""
        ...

    def pair_products(self, code: SparseCode, W_dec: Tensor, g_out: Tensor) -> Tensor:
        """See `gradients.pair_products`."""
        ...

    def code_gradients(
        self, term: GradientTerm, W_dec: Tensor, buffers: GradientBuffers, accumulate: bool, parts: Parts
    ) -> Gradients:
        """See `gradients.code_gradients`; fills `buffers`."""
        ...

    def adam_step(
        self,
        terms: Sequence[GradientTerm],
        weights: Weights,
        state: AdamState,
        options: AdamOptions,
        lr: float | Tensor,
    ) -> Tensor:
        """See `adam.SparseAdam.step`; changes `weights` and `state` in place."""
        ...
