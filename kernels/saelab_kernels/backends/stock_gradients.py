"""Gradients at the kept pairs, from one sort and three sparse products."""

from __future__ import annotations

import warnings

import torch

from saelab_kernels.code import SparseCode
from saelab_kernels.gradients import GradientBuffers, Gradients
from saelab_kernels.shapes import Float, Int, Tensor

# torch announces once that its sparse tensors may change; our tests would notice, a user need not read it.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


def stock_gradients(
    code: SparseCode,
    x: Float[Tensor, "rows d_in"],
    W_dec: Float[Tensor, "d_sae d_out"],
    g_out: Float[Tensor, "rows d_out"] | None,
    g_values: Float[Tensor, "*entries"] | None,
    buffers: GradientBuffers,
    accumulate: bool,
) -> Gradients:
    """See `saelab_kernels.gradients`."""
    exact = code.ragged()
    nnz = exact.values.shape[0]
    direct = exact.values.new_zeros(nnz) if g_values is None else g_values.reshape(-1)[:nnz]
    dz = _value_gradients(exact, W_dec, g_out, direct)
    if nnz:
        _weight_gradients(exact, x, g_out, dz, buffers, accumulate)
    elif not accumulate:
        for buffer in (buffers.W_enc, buffers.b_enc, buffers.W_dec):
            buffer.zero_()
    if code.values.numel() > nnz:  # spare capacity has no gradient
        dz = torch.cat([dz, dz.new_zeros(code.values.numel() - nnz)])
    return Gradients(buffers.W_enc, buffers.b_enc, buffers.W_dec, dz.view(code.values.shape))


def _value_gradients(exact: SparseCode, W_dec: Tensor, g_out: Tensor | None, direct: Tensor) -> Tensor:
    """`<g_out[row], W_dec[column]> + direct` at every entry with a positive value, 0 at the others."""
    dz = direct
    if g_out is not None and direct.shape[0]:
        assert exact.offsets is not None
        sampled = _csr(exact.offsets, exact.columns, direct, exact.shape)
        dz = torch.sparse.sampled_addmm(sampled, g_out, W_dec.t()).values()
    return dz.where(exact.values > 0, 0)


def _weight_gradients(
    exact: SparseCode,
    x: Tensor,
    g_out: Tensor | None,
    dz: Tensor,
    buffers: GradientBuffers,
    accumulate: bool,
) -> None:
    """Fills the buffers: products of the transposed code, `[d_sae, rows]`, with `g_out` and with `x`."""
    order = exact.feature_major()
    shape = (exact.d_sae, exact.n_rows)
    beta = int(accumulate)
    if g_out is not None:
        transposed = _csr(order.offsets, order.rows, exact.values[order.order], shape)
        torch.addmm(buffers.W_dec, transposed, g_out, beta=beta, out=buffers.W_dec)
    elif not accumulate:
        buffers.W_dec.zero_()
    sorted_dz = dz[order.order]
    W_enc = buffers.W_enc.t()
    torch.addmm(W_enc, _csr(order.offsets, order.rows, sorted_dz, shape), x, beta=beta, out=W_enc)
    sums = torch.segment_reduce(sorted_dz, "sum", offsets=order.offsets)
    if accumulate:
        buffers.b_enc.add_(sums)
    else:
        buffers.b_enc.copy_(sums)


def _csr(
    offsets: Int[Tensor, " n_plus_one"], indices: Int[Tensor, " nnz"], values: Tensor, shape: tuple[int, int]
) -> Tensor:
    """A compressed matrix with the narrowest index type; entries of a row in any order, padding allowed."""
    index_type = torch.int32 if values.shape[0] < 2**31 else torch.int64
    return torch.sparse_csr_tensor(
        offsets.to(index_type), indices.to(index_type), values, size=shape, check_invariants=False
    )
