from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab_kernels.backends import stock_running, stock_tiles
from saelab_kernels.dispatch import available_backends, get_backend
from saelab_kernels.layout import feature_major_like, is_feature_major
from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Threshold
from saelab_kernels.select import encode_select

BACKENDS = available_backends()


def options(rule, rows, d_sae, dtype, seed=0):
    """The tensors that a rule needs, random."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(rule, PerFeature):
        return {"budgets": torch.randint(0, 5, (d_sae,), generator=generator)}
    if isinstance(rule, Threshold):
        return {"theta": torch.rand(d_sae, generator=generator, dtype=dtype) - 0.3}
    return {}


RULES = [PerToken(3), PerToken(1), PerToken(50), PerBatch(3), PerBatch(0.4), PerFeature(), Threshold()]


def assert_selects(selection, z, mask):
    """The code is `z` on `mask` and nothing else is active."""
    dense = selection.code.dense()
    assert torch.equal(dense > 0, mask)
    torch.testing.assert_close(dense, z.where(mask, 0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 40])
def test_rule_keeps_what_the_definition_says(problem, naive, rule, rows, backend):
    p = problem(rows, 6, 24)
    given = options(rule, rows, 24, torch.float64)
    selection = encode_select(*p.weights, rule, backend=backend, **given)
    assert_selects(selection, p.z, naive(p.z, rule, **given))
    assert selection.code.shape == (rows, 24)
    assert selection.boundary is None and selection.band is None and selection.attribution_mean is None


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_backends_agree_over_several_tiles(problem, rule):
    p = problem(600, 8, 256)
    given = options(rule, 600, 256, torch.float64)
    ours = encode_select(*p.weights, rule, **given).code
    reference = encode_select(*p.weights, rule, backend="reference", **given).code
    assert torch.equal(ours.dense() > 0, reference.dense() > 0)
    torch.testing.assert_close(ours.dense(), reference.dense())
    assert torch.equal(ours.columns, reference.columns)


@pytest.mark.parametrize("d_sae", [4096, 4100])
@pytest.mark.parametrize("k", [1, 32, 200, 300])
def test_wide_rows_are_exact_with_and_without_groups(problem, d_sae, k):
    p = problem(40, 8, d_sae, dtype=torch.float32)
    code = encode_select(*p.weights, PerToken(k)).code
    expected = (p.z.relu()).topk(k, dim=1)
    torch.testing.assert_close(code.values, expected.values)
    assert torch.equal(code.columns.long(), expected.indices)


def test_ties_in_wide_rows_go_to_the_lower_columns(naive):
    x, b_enc = torch.ones(3, 1), torch.zeros(1024)
    W_enc = torch.randint(0, 4, (1, 1024), generator=torch.Generator().manual_seed(0)).float()
    code = encode_select(x, W_enc, b_enc, PerToken(30)).code
    assert torch.equal(code.dense() > 0, naive(x @ W_enc, PerToken(30)))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_ties_and_small_tiles(naive, data):
    """Whole numbers make exact ties in any arithmetic; tiny tiles and limits reach every branch."""
    rows, d_sae = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 9))
    seed = data.draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, (rows, 2), generator=generator).float()
    W_enc = torch.randint(-2, 3, (2, d_sae), generator=generator).float()
    b_enc = torch.randint(-1, 2, (d_sae,), generator=generator).float()
    rule = data.draw(
        st.sampled_from([PerToken(1), PerToken(3), PerBatch(1), PerBatch(2.6), PerFeature(), Threshold()])
    )
    given = options(rule, rows, d_sae, torch.float32, seed)
    if isinstance(rule, PerToken) and data.draw(st.booleans()):
        given["budgets"] = torch.randint(0, rule.k + 1, (rows,), generator=generator)
    if isinstance(rule, Threshold):
        given["theta"] = given["theta"].mul(4).round()
    boundary = not isinstance(rule, Threshold)
    with (
        mock.patch.object(stock_tiles, "TILE_ROWS_CPU", data.draw(st.integers(1, 4))),
        mock.patch.object(stock_running, "_SMALLEST_LIMIT", data.draw(st.integers(1, 20))),
    ):
        ours = encode_select(x, W_enc, b_enc, rule, boundary=boundary, **given)
    reference = encode_select(x, W_enc, b_enc, rule, boundary=boundary, backend="reference", **given)
    mask = naive(x @ W_enc + b_enc, rule, **given)
    for selection in (ours, reference):
        assert_selects(selection, x @ W_enc + b_enc, mask)
    if boundary:
        assert torch.equal(ours.boundary, reference.boundary)


def test_per_batch_keeps_exactly_its_budget_among_equals():
    x, W_enc, b_enc = torch.ones(300, 1), torch.ones(1, 512), torch.zeros(512)
    code = encode_select(x, W_enc, b_enc, PerBatch(0.5)).code
    assert int(code.l0().sum()) == 150
    assert code.dense()[0, :150].all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_k_of_all_columns_is_a_relu(problem, backend):
    p = problem(30, 6, 20)
    code = encode_select(*p.weights, PerToken(20), backend=backend).code
    torch.testing.assert_close(code.dense(), p.z.relu())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", [PerToken(3), PerBatch(3), PerFeature(), Threshold()], ids=str)
def test_nothing_positive_gives_empty_rows(problem, rule, backend):
    p = problem(5, 4, 6)
    given = options(rule, 5, 6, torch.float64)
    code = encode_select(p.x, p.W_enc * 0, p.b_enc.abs().neg() - 0.1, rule, backend=backend, **given).code
    assert code.l0().tolist() == [0] * 5
    assert not code.dense().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", [PerToken(3), PerBatch(3), PerFeature(), Threshold()], ids=str)
def test_nan_is_kept_so_that_it_shows(problem, rule, backend):
    p = problem(5, 4, 6)
    W_enc = p.W_enc.clone()
    W_enc[:, 2] = torch.nan
    given = options(rule, 5, 6, torch.float64)
    if "budgets" in given:
        given["budgets"].fill_(2)
    code = encode_select(p.x, W_enc, p.b_enc, rule, backend=backend, **given).code
    assert code.dense()[:, 2].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_is_the_same_bits_in_any_batch(problem, dtype):
    p = problem(700, 48, 1000, dtype=dtype)
    whole = encode_select(*p.weights, PerToken(16), boundary=True)
    for size in (1, 7, 256, 300):
        parts = [
            encode_select(p.x[i : i + size], p.W_enc, p.b_enc, PerToken(16), boundary=True)
            for i in range(0, 3 * size, size)
        ]
        rows = sum(part.code.n_rows for part in parts)
        assert torch.equal(torch.cat([q.code.values for q in parts]), whole.code.values[:rows])
        assert torch.equal(torch.cat([q.code.columns for q in parts]), whole.code.columns[:rows])
        assert torch.equal(torch.cat([q.boundary for q in parts]), whole.boundary[:rows])
    shuffled = torch.randperm(700, generator=torch.Generator().manual_seed(1))
    mixed = encode_select(p.x[shuffled], p.W_enc, p.b_enc, PerToken(16)).code
    assert torch.equal(mixed.values, whole.code.values[shuffled])


def test_threshold_is_the_same_bits_in_any_batch(problem):
    p = problem(300, 48, 512, dtype=torch.float32)
    whole = encode_select(*p.weights, Threshold(), theta=5.0).code
    one = [encode_select(p.x[i : i + 1], p.W_enc, p.b_enc, Threshold(), theta=5.0).code for i in range(5)]
    assert torch.equal(torch.cat([code.values for code in one]), whole.slice_rows(0, 5).values)


def test_memory_order_of_the_encoder_does_not_matter(problem):
    p = problem(40, 8, 64, dtype=torch.float32)
    row_major = p.W_enc.contiguous()
    assert is_feature_major(p.W_enc) and not is_feature_major(row_major)
    assert torch.equal(feature_major_like(row_major), row_major)
    assert is_feature_major(feature_major_like(row_major))
    a = encode_select(p.x, p.W_enc, p.b_enc, PerToken(4)).code
    b = encode_select(p.x, row_major, p.b_enc, PerToken(4)).code
    torch.testing.assert_close(a.dense(), b.dense())


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_two_calls_give_the_same_bits(problem, rule):
    p = problem(300, 16, 512, dtype=torch.float32)
    given = options(rule, 300, 512, torch.float32)
    a, b = (encode_select(*p.weights, rule, **given).code for _ in range(2))
    assert torch.equal(a.values, b.values) and torch.equal(a.columns, b.columns)


def test_no_gradient_is_recorded(problem):
    p = problem(4, 3, 5)
    code = encode_select(p.x.requires_grad_(), p.W_enc, p.b_enc, PerToken(2)).code
    assert not code.values.requires_grad


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match="unknown backend 'cuda'; available: torch"):
        get_backend("cuda", torch.zeros(1))
