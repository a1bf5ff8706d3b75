"""Codes that hold a large share of all pairs: dense products in tiles, against the reference."""

from __future__ import annotations

from typing import Any, cast
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from saelab_kernels.backends import stock, stock_dense, stock_gradients
from saelab_kernels.buffers import GradientBuffers
from saelab_kernels.code import SparseCode
from saelab_kernels.decode import decode, decode_error
from saelab_kernels.gradients import code_gradients, pair_products

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
WEIGHTS = ("W_enc", "b_enc", "W_dec")


def code_of(rows, d_sae, share, seed=0, dtype=torch.float64, negative=True) -> SparseCode:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, d_sae, generator=generator, dtype=dtype)
    values = values if negative else values.abs()
    return SparseCode.from_dense(values * (torch.rand(rows, d_sae, generator=generator) < share))


def padded(code: SparseCode) -> SparseCode:
    """Uniform, as wide as the widest row; padding repeats the column that row 0 uses first."""
    width = int(code.row_widths().max())
    values, columns = (
        code.values.new_zeros(code.n_rows, width),
        torch.zeros(code.n_rows, width, dtype=torch.int32),
    )
    assert code.offsets is not None
    for row, (start, stop) in enumerate(zip(code.offsets[:-1], code.offsets[1:], strict=True)):
        values[row, : stop - start] = code.values[start:stop]
        columns[row] = code.columns[start] if stop > start else 0
        columns[row, : stop - start] = code.columns[start:stop]
    return SparseCode(values, columns, code.d_sae)


def spare(code: SparseCode) -> SparseCode:
    return SparseCode(
        torch.cat([code.values, torch.full((5,), torch.nan, dtype=code.values.dtype)]),
        torch.cat([code.columns, torch.full((5,), -1, dtype=torch.int32)]),
        code.d_sae,
        code.offsets,
        count=torch.tensor(code.values.shape[0]),
        overflow=torch.tensor(False),
    )


def used_dense(name: str):
    """Counts the calls of a dense product, wherever it is called from."""
    module = stock if name == "dense_decode" else stock_gradients
    return mock.patch.object(module, name, wraps=getattr(stock_dense, name))


@pytest.mark.parametrize("form", [SparseCode.ragged, padded, spare])
@pytest.mark.parametrize(("share", "dense"), [(0.05, False), (0.4, True)])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 600])
def test_both_sides_of_the_switch_equal_the_reference(problem, rows, share, dense, form):
    p = problem(rows, 6, 40, 5)
    code = form(code_of(rows, 40, share, seed=4))
    if form is padded and not dense:
        code = SparseCode(code.values[:, :4], code.columns[:, :4], 40)
    assert stock_dense.is_dense(code.trimmed()) == dense
    with used_dense("dense_pair_products") as products, used_dense("dense_gradients") as gradients:
        for call in (
            lambda backend: (pair_products(code, p.W_dec, p.target, backend),),
            lambda backend: decode_error(code, p.W_dec, p.W_dec[0], p.target, backend),
            lambda backend: _all(code_gradients(code, p.x, p.W_dec, p.target, backend=backend)),
            lambda backend: _all(
                code_gradients(code, p.x, p.W_dec, None, g_values=code.values, backend=backend)
            ),
        ):
            for mine, theirs in zip(call("torch"), call("reference"), strict=True):
                torch.testing.assert_close(mine, theirs)
        assert products.called == dense and gradients.called == dense


def _all(found) -> tuple[torch.Tensor, ...]:
    return found.W_enc, found.b_enc, found.W_dec, found.values


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_parts_accumulation_and_penalties_over_any_tiles(data):
    rows, d_in, d_sae, d_out = (data.draw(st.integers(1, 7)) for _ in range(4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    code = SparseCode.from_dense(draw(rows, d_sae) * (torch.rand(rows, d_sae, generator=generator) < 0.7))
    x, W_dec = draw(rows, d_in), draw(d_sae, d_out)
    g_out = draw(rows, d_out) if data.draw(st.booleans()) else None
    g_values = torch.sign(code.values) if data.draw(st.booleans()) else None
    parts, accumulate = data.draw(st.sampled_from(["both", "encoder", "decoder"])), data.draw(st.booleans())
    outcomes = []
    for backend in ("torch", "reference"):
        buffers = GradientBuffers.for_shapes(d_in, d_sae, d_out, dtype=torch.float64)
        for name in WEIGHTS:
            getattr(buffers, name).fill_(3)
        with mock.patch.object(stock_dense, "GRADIENT_ROWS", data.draw(st.integers(1, 4))):
            found = code_gradients(
                code,
                x,
                W_dec,
                g_out,
                g_values=g_values,
                buffers=buffers,
                accumulate=accumulate,
                parts=parts,
                backend=backend,
            )
        outcomes.append(_all(found))
    for mine, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(mine, theirs)


def mixed_code(dtype=torch.float32) -> SparseCode:
    """Narrow and wide rows in turn, and an empty one."""
    wide, narrow = code_of(150, 512, 0.6, 1, dtype), code_of(150, 512, 0.01, 2, dtype)
    rows = [one.slice_rows(i, i + 1) for i in range(150) for one in (wide, narrow)]
    return SparseCode.cat([*rows[:40], SparseCode.from_dense(torch.zeros(1, 512, dtype=dtype)), *rows[40:]])


def test_decode_chooses_for_each_row():
    code, W_dec = mixed_code(torch.float64), torch.randn(512, 8, dtype=torch.float64)
    with (
        used_dense("dense_decode") as dense,
        mock.patch.object(stock, "_sparse_decode", wraps=stock._sparse_decode) as sparse,
    ):
        x_hat = decode(code, W_dec, backend="torch")
    torch.testing.assert_close(x_hat, code.dense() @ W_dec)
    assert dense.call_args.args[0].n_rows == 150 and sparse.call_args.args[0].n_rows == 151


@pytest.mark.parametrize("d_out", [32, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_decodes_to_the_same_bits_in_any_batch(dtype, d_out):
    code, generator = mixed_code(dtype), torch.Generator().manual_seed(0)
    W_dec = torch.randn(512, d_out, generator=generator, dtype=dtype)
    whole = decode(code, W_dec, backend="torch")
    rows = [code.slice_rows(i, i + 1) for i in range(code.n_rows)]
    for size in (1, 7, 64, 200):
        chosen = torch.randperm(code.n_rows, generator=generator)[:size].tolist()
        part = decode(SparseCode.cat([rows[i] for i in chosen]), W_dec, backend="torch")
        assert torch.equal(part, whole[chosen])


def test_no_more_than_a_tile_is_held(problem):
    rows, d_sae, d = 2048, 256, 16
    p = problem(rows, d, d_sae, dtype=torch.float32)
    code = code_of(rows, d_sae, 0.3, dtype=torch.float32)
    buffers = GradientBuffers.for_shapes(d, d_sae, d)
    entries = stock_dense.GRADIENT_ROWS * d_sae * 0.35 * 2  # int64 places of a tile's entries
    limit = max(stock_dense.GRADIENT_ROWS * d_sae, entries, code.values.numel())
    assert limit < rows * d_sae / 2
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        decode(code, p.W_dec, backend="torch")
        code_gradients(code, p.x, p.W_dec, p.target, buffers=buffers, backend="torch")
        pair_products(code, p.W_dec, p.target, backend="torch")
    results = cast(Any, profiler.profiler).kineto_results
    sizes = [event.nbytes() / 4 for event in results.events() if event.name() == "[memory]"]
    assert sizes and max(sizes) <= limit
