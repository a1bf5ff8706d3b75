"""Selection by products in bfloat16 gives the float32 result, whatever the numbers are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab_kernels.backends.cpu import half
from saelab_kernels.rules import PerToken
from saelab_kernels.select import encode_select


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    """Whatever the processor, and among however few columns."""
    always = lambda x, n_columns, k: x.dtype == torch.float32 and n_columns > 0  # noqa: E731
    monkeypatch.setattr("saelab_kernels.backends.cpu.per_token.pays", always)


@pytest.fixture
def failures(monkeypatch):
    """How many rows had to be selected in float32, by call."""
    found = []
    inner = half.largest_by_halves

    def counting(*arguments, **options):
        result = inner(*arguments, **options)
        found.append(int(result[3].sum()))
        return result

    monkeypatch.setattr("saelab_kernels.backends.cpu.per_token.largest_by_halves", counting)
    return found


def assert_same(x, W_enc, b_enc, rule, **options):
    """The kept pairs of the float64 reference, and its values to float32."""
    ours = encode_select(x, W_enc, b_enc, rule, boundary=True, backend="cpu", **options)
    reference = encode_select(
        x.double(), W_enc.double(), b_enc.double(), rule, boundary=True, backend="reference", **options
    )
    mine, theirs = ours.code.dense(), reference.code.dense()
    assert torch.equal(mine.nan_to_num(1.0) > 0, theirs.nan_to_num(1.0) > 0)
    torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5 * scale(x, W_enc), equal_nan=True)
    assert ours.boundary is not None and reference.boundary is not None
    good = x.isfinite().all(1)
    torch.testing.assert_close(
        ours.boundary[good].double(), reference.boundary[good], rtol=1e-5, atol=1e-5 * scale(x, W_enc)
    )


def scale(x, W_enc) -> float:
    product = (
        x[x.isfinite().all(1)].norm(dim=1).max() * W_enc.norm(dim=0).nan_to_num(0).max() if len(x) else 0.0
    )
    return float(product) if torch.isfinite(torch.as_tensor(product)) else 1.0


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 8, 40])
@pytest.mark.parametrize("d_in", [3, 64, 200])
def test_random_rows_need_no_second_selection(failures, k, d_in):
    x, W_enc = draw(1, 300, d_in), draw(2, 1500, d_in).t()
    assert_same(x, W_enc, 0.1 * draw(3, 1500), PerToken(k))
    assert len(failures) == 1 and failures[0] <= (300 if d_in == 3 else 3)


def test_a_coordinate_that_all_rows_share_is_taken_out(failures):
    x, W_enc = draw(1, 300, 64), draw(2, 2000, 64).t()
    x[:, 5] += 24 * x.norm(dim=1).mean()
    assert_same(x, W_enc, 0.1 * draw(3, 2000), PerToken(16))
    assert failures == [0]


def test_features_of_very_different_norms(failures):
    x, W_enc = draw(1, 300, 64), draw(2, 2000, 64).t() * torch.logspace(-2, 1, 2000)
    assert_same(x, W_enc, draw(3, 2000), PerToken(16))
    assert failures == [0]


def test_large_biases_and_mostly_negative_scores():
    x, W_enc = draw(1, 300, 64), draw(2, 2000, 64).t()
    for shift in (-30.0, -20.0, 30.0):
        assert_same(x, W_enc, shift + 5 * draw(3, 2000), PerToken(16))


def test_rows_that_are_not_finite_or_beyond_float32_are_selected_otherwise(failures):
    x, W_enc = draw(1, 40, 16), draw(2, 300, 16).t()
    x[3, 2], x[7] = torch.nan, 0.0
    x[11] = 1e30  # its square is beyond float32
    x[12] *= 1e-30
    assert_same(x, W_enc, torch.zeros(300), PerToken(5))
    assert failures[0] >= 2


def test_a_broken_feature_is_kept_by_every_row():
    x, W_enc = draw(1, 40, 16), draw(2, 300, 16).t()
    W_enc[0, 77] = -torch.nan
    code = encode_select(x, W_enc, torch.zeros(300), PerToken(5), backend="cpu").code
    assert (code.columns[:, 0] == 77).all() and code.values[:, 0].isnan().all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ties_budgets_and_few_columns(data):
    """Whole numbers are exact in bfloat16 while they are small, so ties are ties."""
    rows, n, d_in = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 130)), data.draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))

    def whole(*shape):
        return torch.randint(-2, 3, shape, generator=generator).float()

    x, W_enc, b_enc, k = whole(rows, d_in), whole(n, d_in).t(), whole(n), data.draw(st.integers(1, 140))
    options = {}
    if data.draw(st.booleans()):
        options["budgets"] = torch.randint(0, k + 1, (rows,), generator=generator)
    ours = encode_select(x, W_enc, b_enc, PerToken(k), boundary=True, backend="cpu", **options)
    reference = encode_select(x, W_enc, b_enc, PerToken(k), boundary=True, backend="reference", **options)
    assert torch.equal(ours.code.values, reference.code.values)
    assert torch.equal(ours.code.dense(), reference.code.dense())
    assert torch.equal(ours.boundary, reference.boundary)


def test_a_row_has_the_same_bits_in_any_batch():
    x, W_enc, b_enc = draw(1, 700, 48), draw(2, 1000, 48).t(), draw(3, 1000)
    whole = encode_select(x, W_enc, b_enc, PerToken(9), backend="cpu").code
    for rows in (slice(0, 1), slice(300, 333), slice(511, 700)):
        part = encode_select(x[rows], W_enc, b_enc, PerToken(9), backend="cpu").code
        assert torch.equal(part.values, whole.values[rows]) and torch.equal(part.columns, whole.columns[rows])


@pytest.mark.parametrize("exponent", [0, -60, -76, -100])
def test_numbers_whose_squares_are_lost_are_selected_otherwise(exponent):
    """Rounding takes nearly all of this feature's score; the norms that say so are lost in float32 from 2^-76 on."""
    d_in, n = 768, 3000
    signs = torch.ones(d_in)
    signs[d_in // 2 :] = -1
    x = torch.where(signs > 0, 1 + 2**-8 * 0.999, 1 + 2**-8 * 1.001)
    W_dec = torch.zeros(n, d_in)
    W_dec[0] = signs
    W_dec[0, 0] += 1
    W_dec[1:, 1] = 0.25 * torch.rand(n - 1, generator=torch.Generator().manual_seed(0))
    batch = torch.stack([x, -x]) * 2.0**exponent
    code = encode_select(batch, W_dec.t(), torch.zeros(n), PerToken(4), backend="cpu").code
    reference = encode_select(batch, W_dec.t(), torch.zeros(n), PerToken(4), backend="reference").code
    assert torch.equal(code.columns[0], reference.columns[0])


def test_a_feature_that_is_switched_off_costs_nothing(failures):
    x, W_enc, b_enc = draw(1, 300, 64), draw(2, 2000, 64).t(), torch.zeros(2000)
    b_enc[7], b_enc[9] = -1e9, -torch.inf
    assert_same(x, W_enc, b_enc, PerToken(16))
    assert failures == [0]
