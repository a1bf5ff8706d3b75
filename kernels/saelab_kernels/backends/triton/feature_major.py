"""The entries of one or several codes by feature, without waiting for the device, and their division into chunks.

A feature with more than `chunk` entries is dense: its entries are divided among several programs, each of which
leaves a partial row, and these are added in order. Everything has a shape that is known beforehand; only the
contents depend on the codes, so that a step can be captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from saelab_kernels.backends.triton.launch import readable
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Float, Int, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class FeatureOrder:
    """Entries in the order of (feature, term, place in the code); what they are multiplied with.

    Entries with value 0 and spare capacity lie behind the last feature, where no kernel reads.
    """

    order: Int[Tensor, " nnz"]
    """int64; entry j here is entry `order[j]` of the terms' flattened values, one term after the other."""
    values: Float[Tensor, " nnz"]
    g_values: Float[Tensor, " nnz"] | None
    g_rows: Int[Tensor, " nnz"]
    """int32; the entry's row in `g_out`."""
    x_rows: Int[Tensor, " nnz"]
    """int32; its row in `x`."""
    offsets: Int[Tensor, " d_sae_plus_one"]
    """int64; feature i owns entries `offsets[i]` to `offsets[i + 1]`."""
    chunk_offsets: Int[Tensor, " d_sae_plus_one"]
    """int64; a dense feature i owns chunks `chunk_offsets[i]` to `chunk_offsets[i + 1]`, others own none."""
    chunk_features: Int[Tensor, " chunks"]
    """int64; the feature of each chunk, `d_sae` for those that are not needed."""
    x: Float[Tensor, "x_rows d_in"]
    g_out: Float[Tensor, "g_rows d_out"] | None

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.offsets.shape[0] - 1

    @property
    def most_chunks(self) -> int:
        """Chunks for which there must be room, whatever the codes hold."""
        return self.chunk_features.shape[0]


def order_by_feature(terms: Sequence[GradientTerm], chunk: int) -> FeatureOrder:
    """One stable sort of all entries of the terms."""
    d_sae, device = terms[0].code.d_sae, terms[0].x.device
    shared_x = all(_is_same(term.x, terms[0].x) for term in terms)
    starts = [0]
    for term in terms:
        starts.append(starts[-1] + term.code.n_rows)
    in_code = [entry_rows(term.code) for term in terms]
    own_rows = _cat(in_code)
    g_rows = _cat([rows + start for rows, start in zip(in_code, starts[:-1], strict=True)])
    values = _cat([term.code.values.reshape(-1) for term in terms])
    columns = _cat([term.code.columns.reshape(-1) for term in terms])
    g_values = _stacked_g_values(terms)
    keys, order = torch.sort(columns.masked_fill((own_rows < 0) | (values == 0), d_sae), stable=True)
    features = torch.arange(d_sae + 1, dtype=torch.int32, device=device)
    offsets = torch.searchsorted(keys, features)
    chunk_offsets, chunk_features = _chunks(offsets, keys.shape[0], chunk)
    sorted_g_rows = g_rows[order]
    return FeatureOrder(
        order=order,
        values=values[order],
        g_values=None if g_values is None else g_values[order],
        g_rows=sorted_g_rows,
        x_rows=own_rows[order] if shared_x and len(terms) > 1 else sorted_g_rows,
        offsets=offsets,
        chunk_offsets=chunk_offsets,
        chunk_features=chunk_features,
        x=readable(terms[0].x if shared_x else torch.cat([term.x for term in terms])),
        g_out=_stacked_g_out(terms),
    )


def entry_rows(code: SparseCode) -> Int[Tensor, " capacity"]:
    """int32; the row of each stored entry, -1 in spare capacity. Does not wait for the device."""
    entries = torch.arange(code.values.numel(), device=code.values.device)
    if code.offsets is None:
        return (entries // max(code.values.shape[1], 1)).to(torch.int32)
    # The first row that ends behind the entry owns it.
    rows = torch.searchsorted(code.offsets[1:].contiguous(), entries, right=True, out_int32=True)
    return rows.masked_fill(rows == code.n_rows, -1)


def _chunks(offsets: Tensor, entries: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Chunk offsets of the dense features, and the feature of every chunk that there may be.

    A dense feature with c > chunk entries has at most (c + chunk - 1) / chunk chunks, that is at most
    2 c / (chunk + 1), so all together have at most 2 entries / (chunk + 1).
    """
    counts = offsets.diff()
    needed = torch.where(counts > chunk, (counts + (chunk - 1)) // chunk, 0)
    chunk_offsets = torch.zeros_like(offsets)
    torch.cumsum(needed, dim=0, out=chunk_offsets[1:])
    places = torch.arange(2 * entries // (chunk + 1), device=offsets.device)
    return chunk_offsets, torch.searchsorted(chunk_offsets[1:], places, right=True)


def _stacked_g_values(terms: Sequence[GradientTerm]) -> Tensor | None:
    if all(term.g_values is None for term in terms):
        return None
    given = [torch.zeros_like(term.code.values) if term.g_values is None else term.g_values for term in terms]
    return _cat([g_values.reshape(-1) for g_values in given])


def _stacked_g_out(terms: Sequence[GradientTerm]) -> Tensor | None:
    shape = next((term.g_out.shape[1] for term in terms if term.g_out is not None), None)
    if shape is None:
        return None
    given = [
        term.x.new_zeros(term.code.n_rows, shape) if term.g_out is None else readable(term.g_out)
        for term in terms
    ]
    return _cat(given)


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride())
