from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab_kernels.code import SparseCode

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


def uniform() -> SparseCode:
    """Rows with 2, 1 and 0 active features of 5; padding repeats columns."""
    values = torch.tensor([[3.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    columns = torch.tensor([[4, 0, 4], [1, 1, 2], [0, 0, 0]], dtype=torch.int32)
    return SparseCode(values, columns, 5)


DENSE = torch.tensor([[1.0, 0, 0, 0, 3.0], [0, 2.0, 0, 0, 0], [0, 0, 0, 0, 0]])


def with_capacity(overflow: bool = False) -> SparseCode:
    exact = SparseCode.from_dense(DENSE)
    return SparseCode(
        torch.cat([exact.values, torch.zeros(4)]),
        torch.cat([exact.columns, torch.zeros(4, dtype=torch.int32)]),
        5,
        exact.offsets,
        count=torch.tensor(3),
        overflow=torch.tensor(overflow),
    )


FORMS = {
    "uniform": uniform,
    "ragged": lambda: SparseCode.from_dense(DENSE),
    "padded ragged": lambda: uniform().ragged(),
    "capacity": with_capacity,
}


@pytest.fixture(params=FORMS)
def code(request) -> SparseCode:
    return FORMS[request.param]()


def test_every_form_is_the_same_matrix(code):
    assert code.shape == (3, 5)
    assert torch.equal(code.dense(), DENSE)
    assert torch.equal(code.coo().to_dense(), DENSE)
    assert torch.equal(code.csr().to_dense(), DENSE)


def test_csr_keeps_the_invariants_of_torch(code):
    csr = code.csr()
    torch.sparse_csr_tensor(
        csr.crow_indices(), csr.col_indices(), csr.values(), size=csr.shape, check_invariants=True
    )
    assert csr.values().shape == (3,)


def test_counts(code):
    assert code.l0().tolist() == [2, 1, 0]
    assert code.firing_counts().tolist() == [1, 1, 0, 0, 1]
    assert code.l0().dtype == code.firing_counts().dtype == torch.int64


def test_negative_values_are_not_active():
    code = SparseCode.from_dense(-DENSE)
    assert code.l0().tolist() == [0, 0, 0] and int(code.firing_counts().sum()) == 0
    assert torch.equal(code.dense(), -DENSE)


def test_feature_major_order_is_stable_and_complete(code):
    order = code.feature_major()
    exact = code.ragged()
    columns = exact.columns[order.order]
    assert torch.equal(columns, exact.columns.sort().values)
    assert torch.equal(order.rows, exact.row_ids()[order.order])
    for feature in range(5):
        here = slice(int(order.offsets[feature]), int(order.offsets[feature + 1]))
        assert (columns[here] == feature).all()
        assert (order.rows[here].diff() >= 0).all()


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (1, 3), (1, 1), (2, 1), (-2, None), (0, 99)])
def test_slices_follow_python(code, start, stop):
    part = code.slice_rows(start, 3 if stop is None else stop)
    assert torch.equal(part.dense(), DENSE[start : 3 if stop is None else stop])


def test_cat_joins_any_forms(code):
    joined = SparseCode.cat([code, uniform(), code.slice_rows(0, 0), SparseCode.from_dense(DENSE)])
    assert torch.equal(joined.dense(), torch.cat([DENSE, DENSE, DENSE]))


def test_cat_of_uniform_codes_stays_uniform():
    assert SparseCode.cat([uniform(), uniform()]).is_uniform
    assert not SparseCode.cat([uniform(), SparseCode.from_dense(DENSE)]).is_uniform


def test_cat_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="d_sae"):
        SparseCode.cat([uniform(), SparseCode.from_dense(torch.ones(1, 4))])
    with pytest.raises(ValueError, match="at least one"):
        SparseCode.cat([])


def test_with_values_keeps_the_pairs(code):
    assert torch.equal(code.with_values(code.values * 2).dense(), DENSE * 2)
    with pytest.raises(ValueError, match="shape"):
        code.with_values(code.values[:0])


def test_overflow_is_an_error_wherever_the_entries_are_used():
    for use in (SparseCode.dense, SparseCode.l0, SparseCode.feature_major, SparseCode.trimmed):
        with pytest.raises(OverflowError, match="capacity 7"):
            use(with_capacity(overflow=True))


def test_zero_rows_and_zero_width():
    for code in (
        SparseCode(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int32), 5),
        SparseCode(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.int32), 5),
        SparseCode.from_dense(torch.zeros(2, 5)),
        SparseCode.from_dense(torch.zeros(0, 5)),
    ):
        rows = code.n_rows
        assert code.dense().shape == code.coo().shape == code.csr().shape == (rows, 5)
        assert code.l0().tolist() == [0] * rows
        assert code.firing_counts().tolist() == [0] * 5
        assert code.feature_major().offsets.tolist() == [0] * 6
        assert SparseCode.cat([code, code]).n_rows == 2 * rows


@pytest.mark.parametrize(
    ("values", "columns", "offsets"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), None),
        (torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.int32), None),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32), torch.tensor([0, 3, 6])),
        (torch.zeros(6), torch.zeros(6, dtype=torch.int32), None),
        (torch.zeros(6), torch.zeros(6, dtype=torch.int32), torch.tensor([0, 3, 6], dtype=torch.int32)),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_shapes_and_types_are_refused(values, columns, offsets):
    with pytest.raises(ValueError, match="SparseCode"):
        SparseCode(values, columns, 5, offsets)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_slices_put_together_are_the_code(data):
    rows, d_sae = data.draw(st.integers(0, 6)), data.draw(st.integers(1, 5))
    entries = data.draw(st.lists(st.integers(-1, 2), min_size=rows * d_sae, max_size=rows * d_sae))
    dense = torch.tensor(entries, dtype=torch.float32).reshape(rows, d_sae)
    code = SparseCode.from_dense(dense)
    cut = data.draw(st.integers(0, rows))
    joined = SparseCode.cat([code.slice_rows(0, cut), code.slice_rows(cut, rows)])
    assert torch.equal(joined.dense(), dense)
    assert torch.equal(joined.l0(), (dense > 0).sum(1))
    assert torch.equal(joined.firing_counts(), (dense > 0).sum(0))
    assert torch.equal(joined.csr().to_dense(), dense)
