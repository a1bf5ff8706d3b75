"""Gradients at the kept pairs: one sort and three sparse products, or dense ones where many pairs are kept."""

from __future__ import annotations

import warnings

import torch

from saelab_kernels.backends.stock_dense import dense_gradients, dense_pair_products, is_dense
from saelab_kernels.buffers import GradientBuffers, Gradients, GradientTerm, Parts
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Float, Int, Tensor

# torch announces once that its sparse tensors may change; our tests would notice, a user need not read it.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


def stock_gradients(
    term: GradientTerm,
    W_dec: Float[Tensor, "d_sae d_out"],
    buffers: GradientBuffers,
    accumulate: bool,
    parts: Parts,
) -> Gradients:
    """See `saelab_kernels.gradients`."""
    exact = term.code.ragged()
    if is_dense(exact):
        dz = dense_gradients(exact, term, W_dec, buffers, accumulate, parts)
    else:
        dz = _sparse_gradients(exact, term, W_dec, buffers, accumulate, parts)
    return Gradients(buffers.W_enc, buffers.b_enc, buffers.W_dec, _as_values(term.code, dz))


def _sparse_gradients(
    exact: SparseCode,
    term: GradientTerm,
    W_dec: Tensor,
    buffers: GradientBuffers,
    accumulate: bool,
    parts: Parts,
) -> Float[Tensor, " nnz"]:
    """Fills the buffers from the entries alone; the values' gradient at every entry."""
    nnz = exact.values.shape[0]
    dz = _products(exact, W_dec, term.g_out)
    if term.g_values is not None:
        dz = dz + term.g_values.reshape(-1)[:nnz]
    dz = dz.where(exact.values > 0, 0)
    if nnz:
        _weight_gradients(exact, term, dz, buffers, accumulate, parts)
    elif not accumulate:
        wanted = {"encoder": ("W_enc", "b_enc"), "decoder": ("W_dec",), "both": ("W_enc", "b_enc", "W_dec")}
        for name in wanted[parts]:
            getattr(buffers, name).zero_()
    return dz


def stock_pair_products(
    code: SparseCode, W_dec: Float[Tensor, "d_sae d_out"], g_out: Float[Tensor, "rows d_out"]
) -> Float[Tensor, "*entries"]:
    """See `saelab_kernels.gradients.pair_products`."""
    exact = code.ragged()
    if is_dense(exact):
        return _as_values(code, dense_pair_products(exact, W_dec, g_out))
    return _as_values(code, _products(exact, W_dec, g_out))


def _as_values(code: SparseCode, per_entry: Float[Tensor, " nnz"]) -> Float[Tensor, "*entries"]:
    """Numbers of the entries in use in the shape of the code's values; spare capacity gets 0."""
    spare = code.values.numel() - per_entry.shape[0]
    if spare:
        per_entry = torch.cat([per_entry, per_entry.new_zeros(spare)])
    return per_entry.view(code.values.shape)


def _products(exact: SparseCode, W_dec: Tensor, g_out: Tensor | None) -> Float[Tensor, " nnz"]:
    """`<g_out[row], W_dec[column]>` at every entry."""
    zeros = torch.zeros_like(exact.values)
    if g_out is None or not zeros.shape[0]:
        return zeros
    assert exact.offsets is not None
    sampled = _csr(exact.offsets, exact.columns, zeros, exact.shape)
    return torch.sparse.sampled_addmm(sampled, g_out, W_dec.t()).values()


def _weight_gradients(
    exact: SparseCode,
    term: GradientTerm,
    dz: Tensor,
    buffers: GradientBuffers,
    accumulate: bool,
    parts: Parts,
) -> None:
    """Fills the buffers: products of the transposed code, `[d_sae, rows]`, with `g_out` and with `x`."""
    order = exact.feature_major()
    shape = (exact.d_sae, exact.n_rows)
    beta = int(accumulate)
    if parts != "encoder":
        if term.g_out is not None:
            transposed = _csr(order.offsets, order.rows, exact.values[order.order], shape)
            torch.addmm(buffers.W_dec, transposed, term.g_out, beta=beta, out=buffers.W_dec)
        elif not accumulate:
            buffers.W_dec.zero_()
    if parts == "decoder":
        return
    sorted_dz = dz[order.order]
    W_enc = buffers.W_enc.t()
    torch.addmm(W_enc, _csr(order.offsets, order.rows, sorted_dz, shape), term.x, beta=beta, out=W_enc)
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
