"""Codes with spare capacity: every method gives what the exact code gives, whatever lies behind the entries in use."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab_kernels.code import SparseCode

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


def spare(exact: SparseCode, room: int, overflow: bool = False) -> SparseCode:
    """`exact` with `room` undefined entries behind it: NaN, active values, and columns that are no features."""
    junk = torch.tensor([torch.nan, 7.0, -3.0, torch.inf], dtype=exact.values.dtype).repeat(room)[:room]
    columns = torch.tensor([0, 2**31 - 1, exact.d_sae, -1], dtype=torch.int32).repeat(room)[:room]
    return SparseCode(
        torch.cat([exact.values, junk]),
        torch.cat([exact.columns, columns]),
        exact.d_sae,
        exact.offsets,
        count=torch.tensor(exact.values.shape[0]),
        overflow=torch.tensor(overflow),
    )


@st.composite
def dense_matrices(draw) -> torch.Tensor:
    rows, d_sae = draw(st.integers(0, 5)), draw(st.integers(1, 6))
    entries = draw(st.lists(st.integers(-1, 2), min_size=rows * d_sae, max_size=rows * d_sae))
    return torch.tensor(entries, dtype=torch.float32).reshape(rows, d_sae)


@settings(max_examples=80, deadline=None)
@given(st.data(), dense_matrices(), st.integers(0, 9))
def test_every_method_equals_that_of_the_exact_code(data, dense, room):
    exact = SparseCode.from_dense(dense)
    code = spare(exact, room)
    assert code.shape == dense.shape and not code.is_uniform
    assert torch.equal(code.trimmed().values, exact.values) and code.trimmed().count is None
    assert torch.equal(code.ragged().columns, exact.columns)
    for view in (SparseCode.dense, lambda c: c.coo().to_dense(), lambda c: c.csr().to_dense()):
        assert torch.equal(view(code), dense)
    assert torch.equal(code.l0(), (dense > 0).sum(1))
    assert torch.equal(code.firing_counts(), (dense > 0).sum(0))
    assert torch.equal(code.row_widths(), (dense != 0).sum(1))
    assert torch.equal(code.row_ids(), exact.row_ids())
    for mine, theirs in zip(_fields(code.feature_major()), _fields(exact.feature_major()), strict=True):
        assert torch.equal(mine, theirs)
    cut = data.draw(st.integers(0, len(dense)))
    parts = [code.slice_rows(0, cut), code.slice_rows(cut, len(dense))]
    assert torch.equal(parts[0].dense(), dense[:cut]) and torch.equal(parts[1].dense(), dense[cut:])
    joined = SparseCode.cat([code, exact, code])
    assert torch.equal(joined.dense(), torch.cat([dense, dense, dense])) and joined.count is None


def _fields(order) -> tuple[torch.Tensor, ...]:
    return order.order, order.rows, order.offsets


def test_other_values_keep_the_capacity_and_the_flag():
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    code = spare(SparseCode.from_dense(dense), 3)
    doubled = code.with_values(code.values * 2)
    assert doubled.count is code.count and doubled.overflow is code.overflow
    assert torch.equal(doubled.dense(), 2 * dense)
    with pytest.raises(ValueError, match="shape"):
        code.with_values(code.trimmed().values)


USES = {
    "trimmed": SparseCode.trimmed,
    "ragged": SparseCode.ragged,
    "row_widths": SparseCode.row_widths,
    "row_ids": SparseCode.row_ids,
    "l0": SparseCode.l0,
    "slice_rows": lambda code: code.slice_rows(0, 1),
    "dense": SparseCode.dense,
    "coo": SparseCode.coo,
    "csr": SparseCode.csr,
    "feature_major": SparseCode.feature_major,
    "cat": lambda code: SparseCode.cat([code, code]),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_lost_entries_are_an_error(use):
    code = spare(SparseCode.from_dense(torch.ones(2, 3)), 2, overflow=True)
    with pytest.raises(OverflowError, match="capacity 8"):
        use(code)


def test_firing_counts_of_an_overflowed_code_are_those_of_the_entries_that_are_there():
    exact = SparseCode.from_dense(torch.ones(2, 3))
    wanted = torch.tensor(99)  # what would have been kept; more than there is room for
    code = SparseCode(
        exact.values, exact.columns, 3, exact.offsets, count=wanted, overflow=torch.tensor(True)
    )
    assert code.firing_counts().tolist() == [2, 2, 2]


def test_firing_counts_ask_nothing_of_the_device():
    """Reading a number of a tensor would wait for the device; tensors without data cannot be read at all."""
    with torch.device("meta"):
        values, columns = torch.empty(7), torch.empty(7, dtype=torch.int32)
        offsets, count = torch.empty(4, dtype=torch.int64), torch.empty((), dtype=torch.int64)
        overflow = torch.empty((), dtype=torch.bool)
    assert SparseCode(values, columns, 5, offsets, count, overflow).firing_counts().shape == (5,)
    assert SparseCode(values, columns, 5, offsets).firing_counts().shape == (5,)
    with pytest.raises(RuntimeError):
        SparseCode(values, columns, 5, offsets, count, overflow).trimmed()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"overflow": None}, "together"),
        ({"count": None}, "together"),
        ({"count": torch.tensor(2, dtype=torch.int32)}, "int64 and bool"),
        ({"overflow": torch.tensor(0)}, "int64 and bool"),
        (
            {"offsets": None, "values": torch.ones(1, 2), "columns": torch.zeros(1, 2, dtype=torch.int32)},
            "uniform",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_capacity_that_does_not_fit_is_refused(changes, text):
    fields = {
        "values": torch.ones(2),
        "columns": torch.zeros(2, dtype=torch.int32),
        "offsets": torch.tensor([0, 2]),
        "count": torch.tensor(2),
        "overflow": torch.tensor(False),
    }
    with pytest.raises(ValueError, match=text):
        SparseCode(d_sae=3, **(fields | changes))
