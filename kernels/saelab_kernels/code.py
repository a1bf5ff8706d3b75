"""The sparse code: the kept (token, feature) pairs of a batch with their values."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from saelab_kernels.shapes import Bool, Float, Int, Tensor

# Says only that the interface of compressed matrices may change, once a process, to users who chose nothing.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


@dataclass(frozen=True, slots=True)
class FeatureMajor:
    """The entries of a code ordered by feature, inside a feature by row (a stable sort)."""

    order: Int[Tensor, " nnz"]
    """int64; entry j here is entry `order[j]` of the code's flattened values."""
    rows: Int[Tensor, " nnz"]
    """int64; the row of each entry."""
    offsets: Int[Tensor, " d_sae_plus_one"]
    """int64; feature i owns entries `offsets[i]` to `offsets[i + 1]`."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseCode:
    """Kept pairs of a batch `[rows, d_sae]`, in one of two forms.

    Uniform: every row has the same width, `values` and `columns` are `[rows, width]`.
    Ragged: row r owns entries `offsets[r]` to `offsets[r + 1]` of flat `values` and `columns`.

    A padding entry has value 0 and a valid column. An entry with value 0 is inactive whatever put it there.
    No column occurs twice in a row with a non-zero value. Do not write into the tensors.

    A ragged code may have spare capacity: only the first `count` entries are in use, and what lies behind
    them is undefined. Kernels that must not wait for the device make such codes. Every method but
    `firing_counts` and `with_values` then waits for the device, and raises OverflowError if entries were lost.
    """

    values: Float[Tensor, "*entries"]
    """Floating point, `[rows, width]` or `[nnz]`."""
    columns: Int[Tensor, "*entries"]
    """int32, the shape of `values`; the feature of each entry, in `[0, d_sae)`."""
    d_sae: int
    """Number of features."""
    offsets: Int[Tensor, " rows_plus_one"] | None = None
    """int64, ragged form only; starts with 0, does not fall, ends with the number of entries in use."""
    count: Int[Tensor, ""] | None = None
    """int64, on the device; entries in use where a ragged code has spare capacity, None where it has not."""
    overflow: Bool[Tensor, ""] | None = None
    """bool, on the device; True if the capacity did not suffice, None where the code is exact."""

    def __post_init__(self) -> None:
        dimensions = 2 if self.offsets is None else 1
        if self.values.ndim != dimensions or self.columns.shape != self.values.shape:
            raise ValueError(
                f"SparseCode: values {list(self.values.shape)} and columns {list(self.columns.shape)} "
                f"must have one shape with {dimensions} dimension(s)"
            )
        if self.columns.dtype != torch.int32:
            raise ValueError(f"SparseCode: columns must be int32, not {self.columns.dtype}")
        if self.offsets is not None and (self.offsets.ndim != 1 or self.offsets.dtype != torch.int64):
            raise ValueError("SparseCode: offsets must be one-dimensional int64")
        if self.count is None or self.overflow is None:
            if self.count is not self.overflow:
                raise ValueError("SparseCode: count and overflow come together or not at all")
        elif self.offsets is None:
            raise ValueError(
                "SparseCode: only a ragged code has spare capacity; a uniform one takes no count"
            )
        elif (self.count.dtype, self.overflow.dtype) != (torch.int64, torch.bool):
            raise ValueError(
                f"SparseCode: count and overflow must be int64 and bool, not {self.count.dtype} and "
                f"{self.overflow.dtype}"
            )

    @property
    def is_uniform(self) -> bool:
        """Whether every row has the same width."""
        return self.offsets is None

    @property
    def n_rows(self) -> int:
        """Number of tokens."""
        return self.values.shape[0] if self.offsets is None else self.offsets.shape[0] - 1

    @property
    def shape(self) -> tuple[int, int]:
        """`(rows, d_sae)`, the shape of the matrix that this is."""
        return (self.n_rows, self.d_sae)

    @classmethod
    def from_dense(cls, x: Float[Tensor, "rows d_sae"]) -> SparseCode:
        """The non-zero entries of `x`, ragged, in row-major order."""
        rows, columns = x.nonzero(as_tuple=True)
        offsets = _offsets(torch.bincount(rows, minlength=x.shape[0]))
        return cls(x[rows, columns], columns.to(torch.int32), x.shape[1], offsets)

    @classmethod
    def cat(cls, codes: Sequence[SparseCode]) -> SparseCode:
        """The rows of several codes, one after the other: uniform if all are, with one width; else ragged.

        Raises:
            ValueError: no codes, or different numbers of features.
        """
        if not codes:
            raise ValueError("SparseCode.cat: needs at least one code")
        if len({code.d_sae for code in codes}) > 1:
            raise ValueError(f"SparseCode.cat: different d_sae {sorted({code.d_sae for code in codes})}")
        if all(code.is_uniform for code in codes) and len({code.values.shape[1] for code in codes}) == 1:
            values = torch.cat([code.values for code in codes])
            return cls(values, torch.cat([code.columns for code in codes]), codes[0].d_sae)
        parts = [code.ragged() for code in codes]
        widths = torch.cat([part.row_widths() for part in parts])
        values = torch.cat([part.values for part in parts])
        columns = torch.cat([part.columns for part in parts])
        return cls(values, columns, codes[0].d_sae, _offsets(widths))

    def trimmed(self) -> SparseCode:
        """The same code without spare capacity. Waits for the device where there is some.

        Raises:
            OverflowError: entries were lost because the capacity did not suffice.
        """
        if self.count is None or self.overflow is None:
            return self
        n, overflow = torch.stack([self.count, self.overflow.long()]).tolist()  # one wait for both
        if overflow:
            raise OverflowError(
                f"SparseCode: more pairs were kept than the capacity {self.values.shape[0]}; give more room"
            )
        return SparseCode(self.values[:n], self.columns[:n], self.d_sae, self.offsets)

    def ragged(self) -> SparseCode:
        """The same entries with row offsets and no spare capacity (padding of a uniform code stays)."""
        if self.offsets is not None:
            return self.trimmed()
        rows, width = self.values.shape
        offsets = torch.arange(rows + 1, device=self.values.device) * width
        return SparseCode(self.values.reshape(-1), self.columns.reshape(-1), self.d_sae, offsets)

    def row_widths(self) -> Int[Tensor, " rows"]:
        """int64; stored entries of each row, padding included."""
        if self.offsets is None:
            return torch.full((self.n_rows,), self.values.shape[1], device=self.values.device)
        exact = self.trimmed()
        assert exact.offsets is not None
        return exact.offsets.diff()

    def row_ids(self) -> Int[Tensor, " nnz"]:
        """int64; the row of each entry in use, in the order of `ragged().values`."""
        exact = self.trimmed()
        rows = torch.arange(self.n_rows, device=self.values.device)
        return rows.repeat_interleave(exact.row_widths(), output_size=exact.values.numel())

    def l0(self) -> Int[Tensor, " rows"]:
        """int64; active features (value > 0) of each row."""
        if self.offsets is None:
            return (self.values > 0).sum(dim=1)
        return _offsets((self.trimmed().values > 0).long())[self.offsets].diff()

    def firing_counts(self) -> Int[Tensor, " d_sae"]:
        """int64; rows in which each feature is active (value > 0).

        Does not wait for the device, so that a training step may call it: of an overflowed code it counts the
        entries that are there. Sums of whole numbers, so the same in any order of addition.
        """
        fired, columns = (self.values > 0).reshape(-1), self.columns.reshape(-1)
        if self.count is not None:
            in_use = torch.arange(fired.shape[0], device=fired.device) < self.count
            fired = fired & in_use
            columns = columns.where(in_use, 0)  # undefined behind `count`, perhaps no feature at all
        counts = torch.zeros(self.d_sae, dtype=torch.int64, device=fired.device)
        return counts.index_add_(0, columns, fired.long())

    def with_values(self, values: Float[Tensor, "*entries"]) -> SparseCode:
        """The same pairs with other values, of the same shape."""
        if values.shape != self.values.shape:
            raise ValueError(
                f"SparseCode.with_values: shape {list(values.shape)}, expected {list(self.values.shape)}"
            )
        return replace(self, values=values)

    def slice_rows(self, start: int, stop: int) -> SparseCode:
        """Rows `start` to `stop` (Python's slice rules), as views where possible."""
        start, stop, _ = slice(start, stop).indices(self.n_rows)
        stop = max(start, stop)
        if self.offsets is None:
            return SparseCode(self.values[start:stop], self.columns[start:stop], self.d_sae)
        exact = self.trimmed()
        first, last = self.offsets[[start, stop]].tolist()
        offsets = self.offsets[start : stop + 1] - first
        return SparseCode(exact.values[first:last], exact.columns[first:last], self.d_sae, offsets)

    def dense(self) -> Float[Tensor, "rows d_sae"]:
        """The whole matrix; for small codes and tests."""
        exact = self.ragged()
        flat = exact.row_ids() * self.d_sae + exact.columns
        out = torch.zeros(self.n_rows * self.d_sae, dtype=self.values.dtype, device=self.values.device)
        return out.scatter_add_(0, flat, exact.values).view(self.n_rows, self.d_sae)

    def coo(self) -> Tensor:
        """A coalesced `torch.sparse_coo` matrix `[rows, d_sae]` of the non-zero entries."""
        exact = self.ragged()
        used = exact.values != 0
        indices = torch.stack([exact.row_ids()[used], exact.columns[used].long()])
        matrix = torch.sparse_coo_tensor(indices, exact.values[used], self.shape, check_invariants=False)
        return matrix.coalesce()

    def csr(self) -> Tensor:
        """A `torch.sparse_csr` matrix `[rows, d_sae]` of the non-zero entries, columns rising in a row."""
        return self.coo().to_sparse_csr()

    def feature_major(self) -> FeatureMajor:
        """The order of the entries by feature, from one stable sort; padding entries are included."""
        exact = self.ragged()
        columns, order = torch.sort(exact.columns, stable=True)
        features = torch.arange(self.d_sae + 1, dtype=torch.int32, device=columns.device)
        offsets = torch.searchsorted(columns, features)
        rows = order // self.values.shape[1] if self.offsets is None else exact.row_ids()[order]
        return FeatureMajor(order, rows, offsets)


def _offsets(widths: Int[Tensor, " n"]) -> Int[Tensor, " n_plus_one"]:
    """Running sums of `widths` that start with 0."""
    out = torch.zeros(widths.shape[0] + 1, dtype=torch.int64, device=widths.device)
    torch.cumsum(widths, dim=0, out=out[1:])
    return out
