"""The entries of one or several codes in the order of their features, with what a gradient needs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from saelab_kernels.backends.cpu.compiled import loop
from saelab_kernels.backends.cpu.tiles import numbers
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """The used entries of all terms, one term's rows after the other's; inside a feature in the order of rows."""

    starts: np.ndarray
    """int64 `[d_sae + 1]`; feature i owns entries `starts[i]` to `starts[i + 1]`."""
    rows: np.ndarray
    """int32; row in `g_out`, all terms counted."""
    places: np.ndarray
    """int64; where the entry stands in the flattened values of its code, after those of earlier terms."""
    values: np.ndarray
    """The entry's value."""
    direct: np.ndarray | None
    """Direct gradient of the entry's value, None where no term has one."""
    g_out: np.ndarray | None
    """Gradients of the reconstructions, stacked; None where no term has one."""
    x: np.ndarray
    """Encoder inputs; a row of `g_out` belongs to its row modulo the number of rows here."""

    @property
    def arrays(self) -> tuple[np.ndarray | None, ...]:
        """What the compiled loops read."""
        return self.starts, self.rows, self.values, self.direct, self.g_out, self.x


def entries_of(terms: Sequence[GradientTerm]) -> Entries:
    """Bring the entries of the terms together. Entries with value 0 are left out: they move nothing."""
    codes = [term.code.trimmed() for term in terms]
    values = [code.values.detach().reshape(-1) for code in codes]
    columns = [code.columns.reshape(-1) for code in codes]
    rows, before = [], 0
    for code in codes:
        rows.append(_row_numbers(code) + before)
        before += code.n_rows
    d_sae = codes[0].d_sae
    flat_values, flat_columns = numbers(torch.cat(values)), numbers(torch.cat(columns))
    starts = np.zeros(d_sae + 1, np.int64)
    used = _count(flat_values, flat_columns, starts)
    ordered_rows, places = np.empty(used, np.int32), np.empty(used, np.int64)
    ordered_values = np.empty(used, flat_values.dtype)
    flat_rows = numbers(torch.cat(rows))
    _order(flat_values, flat_columns, flat_rows, starts[:-1].copy(), ordered_values, ordered_rows, places)
    return Entries(
        starts,
        ordered_rows,
        places,
        ordered_values,
        _direct(terms, codes, places),
        _stacked([term.g_out for term in terms], [code.n_rows for code in codes]),
        _inputs(terms),
    )


def _row_numbers(code: SparseCode) -> Tensor:
    """int32; the row of each entry."""
    if code.offsets is None:
        rows = torch.arange(code.n_rows, dtype=torch.int32)
        return rows.unsqueeze(1).expand(code.values.shape).reshape(-1)
    return code.row_ids().to(torch.int32)


def _direct(
    terms: Sequence[GradientTerm], codes: Sequence[SparseCode], places: np.ndarray
) -> np.ndarray | None:
    if all(term.g_values is None for term in terms):
        return None
    parts = [
        torch.zeros_like(code.values).reshape(-1)
        if term.g_values is None
        else term.g_values.detach().reshape(-1)[: code.values.numel()]
        for term, code in zip(terms, codes, strict=True)
    ]
    return numbers(torch.cat(parts))[places]


def _stacked(g_outs: Sequence[Tensor | None], n_rows: Sequence[int]) -> np.ndarray | None:
    given = [g_out for g_out in g_outs if g_out is not None]
    if not given:
        return None
    if len(g_outs) == 1:
        return numbers(given[0].contiguous())
    d_out = given[0].shape[1]
    parts = [
        given[0].new_zeros(rows, d_out) if g_out is None else g_out.detach()
        for g_out, rows in zip(g_outs, n_rows, strict=True)
    ]
    return numbers(torch.cat(parts))


def _inputs(terms: Sequence[GradientTerm]) -> np.ndarray:
    first = terms[0].x
    if all(term.x is first for term in terms):
        return numbers(first.contiguous())
    return numbers(torch.cat([term.x.detach() for term in terms]))


@loop
def _count(values, columns, starts):
    """Fills `starts`; returns the number of entries that are not 0."""
    for e in range(values.shape[0]):
        if values[e] != 0:
            starts[columns[e] + 1] += 1
    for f in range(starts.shape[0] - 1):
        starts[f + 1] += starts[f]
    return starts[-1]


@loop
def _order(values, columns, rows, places, out_values, out_rows, out_places):
    """A stable counting sort by feature."""
    for e in range(values.shape[0]):
        if values[e] != 0:
            f = columns[e]
            p = places[f]
            places[f] = p + 1
            out_values[p] = values[e]
            out_rows[p] = rows[e]
            out_places[p] = e
