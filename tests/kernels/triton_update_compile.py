"""The launches of decode, gradients and the optimiser step, on tensors without contents.

Run by `test_triton_update` in a process without TRITON_INTERPRET. Fake tensors have shapes of any size and no
numbers: an operation that would wait for the device to learn one fails. Each launch is then compiled for a GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from triton_compile import compile_all, recorded_launches

from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights
from saelab_kernels.buffers import GradientBuffers, GradientTerm
from saelab_kernels.code import SparseCode
from saelab_kernels.decode import decode, decode_error
from saelab_kernels.gradients import code_gradients, pair_products


def fake_codes(rows: int, k: int, d_sae: int, dtype: torch.dtype) -> list[SparseCode]:
    """Uniform, ragged, and ragged with spare capacity."""
    values, columns = torch.zeros(rows, k, dtype=dtype), torch.zeros(rows, k, dtype=torch.int32)
    flat, offsets = (values.view(-1), columns.view(-1), d_sae), torch.zeros(rows + 1, dtype=torch.int64)
    count, overflow = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.bool)
    return [
        SparseCode(values, columns, d_sae),
        SparseCode(*flat, offsets),
        SparseCode(*flat, offsets, count, overflow),
    ]


def launch_all(dtype: torch.dtype, rows: int = 8192, d: int = 2304, d_sae: int = 131072, k: int = 64) -> None:
    """Every operator, in every form that makes other launches."""
    x, target, W_dec = (torch.zeros(n, d, dtype=dtype) for n in (rows, rows, d_sae))
    weights = Weights(
        torch.zeros(d_sae, d, dtype=dtype).t(), torch.zeros(d_sae, dtype=dtype), W_dec, W_dec[0].clone()
    )
    buffers = GradientBuffers.for_shapes(d, d_sae, d, dtype=dtype)
    for code in fake_codes(rows, k, d_sae, dtype):
        decode(code, W_dec, backend="triton")
        error, _ = decode_error(code, W_dec, weights.b_dec, target, backend="triton")
        pair_products(code, W_dec, error, backend="triton")
        for parts in ("both", "encoder", "decoder"):
            for g_values in (None, code.values):
                for g_out in (error, None):
                    code_gradients(
                        code, x, W_dec, g_out, g_values=g_values, buffers=buffers, accumulate=g_values is None,
                        parts=parts, backend="triton",
                    )  # fmt: skip
        terms = [GradientTerm(code, x, error), GradientTerm(code, x, error, code.values, adds_b_dec=False)]
        for how in (AdamOptions(), AdamOptions(clip=1.0), AdamOptions(unit_rows=False, input_bias=False)):
            adam = SparseAdam(weights, how, "triton")
            adam.step(terms[:1], 1e-3)
            adam.step(terms, torch.tensor(1e-3))
            adam.step([GradientTerm(code, x, None)], 1e-3)


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    """The backend is there, though neither a GPU nor the interpreter is."""
    monkeypatch.setattr("saelab_kernels.dispatch._runs_here", lambda name: True)


KERNELS = {
    "decode_kernel", "pair_products_kernel", "partial_kernel", "decoder_gradient_kernel", "encoder_gradient_kernel",
    "decoder_kernel", "encoder_kernel",
}  # fmt: skip


def test_no_operator_needs_a_number_and_all_launches_in_float32_compile():
    with recorded_launches() as launches, FakeTensorMode():
        launch_all(torch.float32)
    assert {launch.kernel.__name__ for launch in launches} == KERNELS
    compile_all(launches)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_compile(dtype):
    with recorded_launches() as launches, FakeTensorMode():
        launch_all(dtype)
    last = {launch.kernel.__name__: launch for launch in launches}
    assert last.keys() == KERNELS
    compile_all(list(last.values()))


def test_waiting_for_the_device_would_be_noticed():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        bool(torch.zeros(()) > 0)
