"""Products of a code through dense tiles, where a large share of all pairs is stored (thresholds at the start).

A sparse product moves whole rows for every pair; a dense one works at the speed of a matrix product, also on
zeros. Tiles of rows keep the matrix `[rows, d_sae]` from ever existing. Zeros times an infinity or NaN are
NaN, so broken weights show in more places than through the sparse products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from saelab_kernels.buffers import GradientBuffers, GradientTerm, Parts
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Bool, Float, Int, Tensor

DENSE_FROM = 0.125
"""Stored share of all pairs above which dense products are used. Measured on one core in float32 against
torch's sparse products, 1,024 rows, d 256 with 4,096 features and d 768 with 8,192: gradients cross at 0.11
and 0.10, decode at 0.13 and 0.07; at a share of 0.5 they take 0.27 and 0.20 (decode 0.31 and 0.16) of the time."""
DECODE_ROWS = 64
"""Rows of every product of `dense_decode`, however many there are: a row's bits must not depend on the
others, and one row pays for the whole tile. Measured: no slower for each row than 128 or 256, 12 % faster than 32."""
GRADIENT_ROWS = 256
"""Most rows of a tile of gradients. Measured: 512 and 1,024 gain at most 7 %."""


def is_dense(code: SparseCode) -> bool:
    """Whether dense products pay for a code as a whole. Padding and spare capacity count as stored."""
    return code.values.numel() > DENSE_FROM * code.n_rows * code.d_sae


def dense_rows(exact: SparseCode) -> Bool[Tensor, " rows"] | None:
    """Rows of a code without spare capacity that are worth a dense decode; None where there are none.

    Each row is judged by its own width, so that its result is the same bits in any batch. On an accelerator
    none are: looking would wait for it, and nothing was measured there.
    """
    cut = DENSE_FROM * exact.d_sae
    if exact.values.device.type != "cpu" or exact.values.numel() <= cut:
        return None
    mask = exact.row_widths() > cut
    return mask if bool(mask.any()) else None


Product = Callable[[SparseCode, Tensor], Tensor]
"""Makes `code @ W_dec` of a code without spare capacity."""


def decode_by_rows(
    exact: SparseCode, W_dec: Float[Tensor, "d_sae d_out"], narrow: Product, wide: Product
) -> Float[Tensor, "rows d_out"]:
    """`exact @ W_dec`: wide rows by one product, the others by the other one."""
    dense = dense_rows(exact)
    if dense is None:
        return narrow(exact, W_dec)
    if bool(dense.all()):
        return wide(exact, W_dec)
    out = W_dec.new_empty(exact.n_rows, W_dec.shape[1])
    out[dense] = wide(_rows_where(exact, dense), W_dec)
    out[~dense] = narrow(_rows_where(exact, ~dense), W_dec)
    return out


def dense_decode(exact: SparseCode, W_dec: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, "rows d_out"]:
    """`exact @ W_dec`; a row is the same bits in any batch."""
    exact = exact.ragged()
    out = W_dec.new_empty(exact.n_rows, W_dec.shape[1])
    product = W_dec.new_empty(DECODE_ROWS, W_dec.shape[1])
    for tile in _tiles(exact, DECODE_ROWS):
        torch.mm(tile.filled(tile.of_entries(exact.values)), W_dec, out=product)
        out[tile.rows] = product[: tile.height]
    return out


def dense_pair_products(
    exact: SparseCode, W_dec: Float[Tensor, "d_sae d_out"], g_out: Float[Tensor, "rows d_out"]
) -> Float[Tensor, " nnz"]:
    """`<g_out[row], W_dec[column]>` at every entry of a code without spare capacity."""
    exact = exact.ragged()
    out = torch.empty_like(exact.values)
    for tile in _tiles(exact, min(GRADIENT_ROWS, exact.n_rows)):
        tile.of_entries(out).copy_(tile.pair_products(W_dec, g_out))
    return out


def dense_gradients(
    exact: SparseCode,
    term: GradientTerm,
    W_dec: Float[Tensor, "d_sae d_out"],
    buffers: GradientBuffers,
    accumulate: bool,
    parts: Parts,
) -> Float[Tensor, " nnz"]:
    """Fills `buffers` as `gradients.code_gradients` does; the values' gradient at every entry.

    Args:
        exact: the code of `term` without spare capacity; with at least one entry.
        term: what is differentiated; its own code is not looked at.
        W_dec: the decoder.
        buffers: written or added to.
        accumulate: whether to add.
        parts: as in `code_gradients`.
    """
    exact = exact.ragged()
    g_values = None if term.g_values is None else term.g_values.reshape(-1)
    d_values = torch.zeros_like(exact.values)
    if not accumulate and parts != "encoder" and term.g_out is None:
        buffers.W_dec.zero_()
    for tile in _tiles(exact, min(GRADIENT_ROWS, exact.n_rows)):
        beta = int(accumulate or tile.rows.start > 0)
        values, dz = tile.of_entries(exact.values), tile.of_entries(d_values)
        if term.g_out is not None:
            if parts != "encoder":
                transposed = tile.filled(values)[: tile.height].t()
                torch.addmm(buffers.W_dec, transposed, term.g_out[tile.rows], beta=beta, out=buffers.W_dec)
            dz.copy_(tile.pair_products(W_dec, term.g_out))
        if g_values is not None:
            dz += tile.of_entries(g_values)
        dz.masked_fill_((values > 0).logical_not_(), 0)
        if parts != "decoder":
            _add_encoder(tile, dz, term.x, buffers, beta)
    return d_values


def _add_encoder(tile: _Tile, dz: Tensor, x: Tensor, buffers: GradientBuffers, beta: int) -> None:
    """`buffers = beta * buffers + x^T dz` for one tile, and the bias."""
    matrix, W_enc = tile.filled(dz)[: tile.height], buffers.W_enc.t()
    torch.addmm(W_enc, matrix.t(), x[tile.rows], beta=beta, out=W_enc)
    if beta:
        buffers.b_enc.add_(matrix.sum(dim=0))
    else:
        torch.sum(matrix, dim=0, out=buffers.b_enc)


@dataclass(frozen=True, slots=True, eq=False)
class _Tile:
    """Some rows of a ragged code, and the memory of a dense matrix; the next tile overwrites it."""

    rows: slice
    entries: slice
    flat: Int[Tensor, " entries"]
    """int64; places of the entries in the flattened matrix."""
    matrix: Float[Tensor, "full_height d_sae"]

    @property
    def height(self) -> int:
        """Rows of the code in this tile; the matrix may have more."""
        return self.rows.stop - self.rows.start

    def of_entries(self, flat: Tensor) -> Tensor:
        """This tile's part of a tensor `[nnz]`."""
        return flat[self.entries]

    def filled(self, values: Tensor) -> Tensor:
        """The matrix with `values` at the entries, 0 elsewhere (added: padding repeats columns)."""
        self.matrix.zero_().view(-1).scatter_add_(0, self.flat, values)
        return self.matrix

    def pair_products(self, W_dec: Tensor, g_out: Tensor) -> Tensor:
        """`<g_out[row], W_dec[column]>` at the tile's entries; overwrites the matrix."""
        torch.mm(g_out[self.rows], W_dec.t(), out=self.matrix[: self.height])
        return self.matrix.view(-1).index_select(0, self.flat)


def _tiles(exact: SparseCode, height: int) -> Iterator[_Tile]:
    """A ragged code in tiles of `height` rows; the last one may have fewer."""
    assert exact.offsets is not None
    rows = exact.n_rows
    widths = exact.row_widths()
    matrix = exact.values.new_empty(height, exact.d_sae)
    places = torch.arange(height, device=widths.device) * exact.d_sae
    starts = list(range(0, rows, height))
    bounds = exact.offsets[[*starts, rows]].tolist()
    for index, start in enumerate(starts):
        here = slice(start, min(start + height, rows))
        entries = slice(bounds[index], bounds[index + 1])
        first = places[: here.stop - start].repeat_interleave(
            widths[here], output_size=entries.stop - entries.start
        )
        yield _Tile(here, entries, first.add_(exact.columns[entries]), matrix)


def _rows_where(exact: SparseCode, mask: Bool[Tensor, " rows"]) -> SparseCode:
    """The rows at which `mask` holds, ragged."""
    assert exact.offsets is not None
    widths = exact.row_widths()
    entries = mask.repeat_interleave(widths, output_size=exact.values.shape[0])
    offsets = torch.nn.functional.pad(widths[mask].cumsum(0), (1, 0))
    return SparseCode(exact.values[entries], exact.columns[entries], exact.d_sae, offsets)
