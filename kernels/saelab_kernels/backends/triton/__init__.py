"""Backend "triton": kernels for one NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from saelab_kernels.adam_state import AdamOptions, AdamState, Weights
from saelab_kernels.backends.triton.adam import run_adam_step
from saelab_kernels.backends.triton.decode import run_decode, run_pair_products
from saelab_kernels.backends.triton.gradients import run_code_gradients
from saelab_kernels.backends.triton.launch import Tuning
from saelab_kernels.backends.triton.select import triton_select
from saelab_kernels.buffers import GradientBuffers, Gradients, GradientTerm, Parts
from saelab_kernels.code import SparseCode
from saelab_kernels.contract import Backend
from saelab_kernels.request import Selection, SelectRequest
from saelab_kernels.shapes import Tensor


@dataclass(frozen=True, slots=True)
class TritonBackend:
    """No tensor of `rows * d_sae`, `nnz * d` or (in the optimiser step) `d_sae * d` elements exists at any time."""

    tuning: Tuning = field(default_factory=Tuning)

    def encode_select(self, request: SelectRequest) -> Selection:
        return triton_select(request)

    def decode(self, code: SparseCode, W_dec: Tensor, b_dec: Tensor | None) -> Tensor:
        return run_decode(code, W_dec, b_dec, None, self.tuning)[0]

    def decode_error(
        self, code: SparseCode, W_dec: Tensor, b_dec: Tensor | None, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        error, squares = run_decode(code, W_dec, b_dec, target, self.tuning)
        assert squares is not None
        return error, squares

    def pair_products(self, code: SparseCode, W_dec: Tensor, g_out: Tensor) -> Tensor:
        return run_pair_products(code, W_dec, g_out, self.tuning)

    def code_gradients(
        self, term: GradientTerm, W_dec: Tensor, buffers: GradientBuffers, accumulate: bool, parts: Parts
    ) -> Gradients:
        return run_code_gradients(term, W_dec, buffers, accumulate, parts, self.tuning)

    def adam_step(
        self,
        terms: Sequence[GradientTerm],
        weights: Weights,
        state: AdamState,
        options: AdamOptions,
        lr: float | Tensor,
    ) -> Tensor:
        return run_adam_step(
            [term.among_all(weights.W_dec.shape[0]) for term in terms],
            weights,
            state,
            options,
            lr,
            self.tuning,
        )


BACKEND: Backend = TritonBackend()
