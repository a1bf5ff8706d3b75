"""Selection by the backend "cpu" against the float64 reference, over tiles, blocks of 64 lanes and broken numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab_kernels.layout import feature_major_like
from saelab_kernels.request import Attribution
from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Threshold
from saelab_kernels.select import encode_select

ROWS = st.sampled_from([0, 1, 2, 255, 256, 257, 300])
BACKENDS = ["cpu", "cpu-float32"]
COLUMNS = st.sampled_from([1, 63, 64, 65, 127, 128, 200, 1023, 1024, 1025, 1100])
BROKEN = [float("nan"), -float("nan"), float("inf"), -float("inf")]

each = pytest.mark.parametrize("backend", BACKENDS)


@st.composite
def cases(draw, rows=ROWS, d_sae=COLUMNS):
    """Shapes with a generator: `(rows, d_in, d_sae, generator)`."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    return draw(rows), draw(st.sampled_from([1, 3, 16, 17])), draw(d_sae), generator


def whole_numbers(*shape, generator, dtype=torch.float32):
    """Small integers: every sum is exact in any order, and ties are everywhere."""
    return torch.randint(-2, 3, shape, generator=generator).to(dtype)


def random_numbers(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def draw_rule(data, rows, d_sae, dtype, generator):
    """A rule with all that may go with it."""
    columns = None
    if data.draw(st.booleans()):
        n = data.draw(st.integers(0, d_sae))
        columns = torch.randperm(d_sae, generator=generator)[:n]
    k = data.draw(st.sampled_from([1, 3, 40, d_sae, d_sae + 5]))
    rule = data.draw(st.sampled_from([PerToken(k), PerBatch(min(k, 7) - 0.4), PerFeature(), Threshold()]))
    extra = {"columns": columns}
    if isinstance(rule, Threshold):
        scalar = data.draw(st.booleans())
        theta = torch.randint(-1, 4, () if scalar else (d_sae,), generator=generator).to(dtype)
        return rule, extra | {"theta": theta, "band": data.draw(st.sampled_from([0.0, 3.0]))}
    extra["boundary"] = data.draw(st.booleans())
    if isinstance(rule, PerFeature):
        extra["budgets"] = torch.randint(0, rows + 3, (d_sae,), generator=generator)
    if isinstance(rule, PerToken):
        extra["sort"] = data.draw(st.booleans())
        if data.draw(st.booleans()):
            extra["budgets"] = torch.randint(0, k + 1, (rows,), generator=generator)
    return rule, extra


def assert_same(ours, reference, exact):
    """Equal codes (in any order of a row), boundaries and bands."""
    a, b = ours.code.dense(), reference.code.dense()
    assert torch.equal(a != 0, b != 0)
    same = torch.equal if exact else lambda x, y: torch.testing.assert_close(x, y) is None
    assert same(a, b)
    assert ours.code.offsets is None or torch.equal(ours.code.columns, reference.code.columns)
    assert (ours.boundary is None) == (reference.boundary is None)
    assert ours.boundary is None or same(ours.boundary, reference.boundary)
    assert (ours.band is None) == (reference.band is None)
    if ours.band is not None:
        assert torch.equal(ours.band.columns, reference.band.columns)
        assert torch.equal(ours.band.offsets, reference.band.offsets)
        assert same(ours.band.values, reference.band.values)


@each
@settings(max_examples=30, deadline=None)
@given(case=cases(), data=st.data())
def test_random_numbers_as_the_reference(backend, case, data):
    rows, d_in, d_sae, generator = case
    x, W_enc, b_enc = (
        random_numbers(*s, generator=generator) for s in ((rows, d_in), (d_in, d_sae), (d_sae,))
    )
    rule, extra = draw_rule(data, rows, d_sae, torch.float64, generator)
    ours = encode_select(x, W_enc, b_enc, rule, backend=backend, **extra)
    assert_same(ours, encode_select(x, W_enc, b_enc, rule, backend="reference", **extra), exact=False)


@each
@settings(max_examples=30, deadline=None)
@given(case=cases(), data=st.data())
def test_ties_go_to_the_lower_row_and_column_across_tiles(backend, case, data):
    rows, d_in, d_sae, generator = case
    x, W_enc, b_enc = (
        whole_numbers(*s, generator=generator) for s in ((rows, d_in), (d_in, d_sae), (d_sae,))
    )
    rule, extra = draw_rule(data, rows, d_sae, torch.float32, generator)
    ours = encode_select(x, W_enc, b_enc, rule, backend=backend, **extra)
    assert_same(ours, encode_select(x, W_enc, b_enc, rule, backend="reference", **extra), exact=True)
    if isinstance(rule, PerToken) and extra["sort"]:
        assert bool((ours.code.values.diff(dim=1) <= 0).all())
        tied = (ours.code.values.diff(dim=1) == 0) & (ours.code.values[:, 1:] != 0)
        place = torch.zeros(d_sae, dtype=torch.int64)
        ranked = torch.arange(d_sae) if extra["columns"] is None else extra["columns"]
        place[ranked] = torch.arange(len(ranked))
        assert bool((place[ours.code.columns.long()].diff(dim=1) > 0)[tied].all())


@each
@settings(max_examples=20, deadline=None)
@given(case=cases(d_sae=st.sampled_from([1, 64, 65, 200, 1025])), data=st.data())
def test_scaled_and_attributed_scores_as_the_reference(backend, case, data):
    rows, d_in, d_sae, generator = case
    x, W_enc, b_enc = (
        random_numbers(*s, generator=generator) for s in ((rows, d_in), (d_in, d_sae), (d_sae,))
    )
    rule, extra = draw_rule(data, rows, d_sae, torch.float64, generator)
    if data.draw(st.booleans()):
        extra["scale"] = random_numbers(d_sae, generator=generator).relu()
    else:
        extra["attribution"] = Attribution(
            g=random_numbers(rows, 5, generator=generator),
            W_dec=random_numbers(d_sae, 5, generator=generator),
            beta=0.3,
            mode=data.draw(st.sampled_from(["add", "mul"])),
        )
    ours = encode_select(x, W_enc, b_enc, rule, backend=backend, **extra)
    reference = encode_select(x, W_enc, b_enc, rule, backend="reference", **extra)
    assert_same(ours, reference, exact=False)
    if "attribution" in extra and ours.code.d_sae and (extra["columns"] is None or len(extra["columns"])):
        torch.testing.assert_close(ours.attribution_mean, reference.attribution_mean)


@each
@pytest.mark.parametrize("d_sae", [2047, 2048, 2049, 4100])
@pytest.mark.parametrize("k", [1, 32, 700])
def test_wide_tiles_are_exact(backend, d_sae, k):
    """From d_in 512 on a tile has twice the columns."""
    generator = torch.Generator().manual_seed(d_sae + k)
    x = whole_numbers(3, 512, generator=generator)
    W_enc, b_enc = whole_numbers(d_sae, 512, generator=generator).t(), torch.zeros(d_sae)
    for rule, extra in ((PerToken(k), {"boundary": True}), (Threshold(), {"theta": 20.0})):
        ours = encode_select(x, W_enc, b_enc, rule, backend=backend, **extra)
        assert_same(ours, encode_select(x, W_enc, b_enc, rule, backend="reference", **extra), exact=True)


@each
@pytest.mark.parametrize("order", ["rising", "falling", "equal"])
def test_orders_that_fill_the_lists_most_and_least(backend, order):
    n = 3000
    b_enc = torch.arange(n, dtype=torch.float32) + 1
    b_enc = {"rising": b_enc, "falling": b_enc.flip(0), "equal": torch.ones(n)}[order]
    x, W_enc = torch.zeros(300, 2), torch.zeros(n, 2).t()
    for rule in (PerToken(5), PerToken(n), PerBatch(5)):
        ours = encode_select(x, W_enc, b_enc, rule, backend=backend, boundary=True)
        reference = encode_select(x, W_enc, b_enc, rule, backend="reference", boundary=True)
        assert_same(ours, reference, exact=True)


def oracle(z, rule, extra):
    """What must be kept, by the reference on finite numbers in the same order: NaN above infinity above all else."""
    finite = z.double().nan_to_num(nan=1e30, posinf=1e20, neginf=-1e20)
    identity = torch.eye(z.shape[1], dtype=torch.float64)
    code = encode_select(
        finite, identity, torch.zeros(z.shape[1]).double(), rule, backend="reference", **extra
    ).code
    return code.dense() != 0


@each
@settings(max_examples=60, deadline=None)
@given(
    case=cases(rows=st.sampled_from([1, 3, 260]), d_sae=st.sampled_from([1, 64, 100, 200])),
    rule=st.sampled_from(
        [PerToken(1), PerToken(7), PerToken(500), PerBatch(0.6), PerBatch(9), PerFeature(), Threshold()]
    ),
    breaks=st.lists(
        st.tuples(st.sampled_from(["x", "W_enc", "b_enc"]), st.sampled_from(BROKEN)), min_size=1, max_size=4
    ),
)
def test_nan_ranks_first_and_is_kept(backend, case, rule, breaks):
    rows, d_in, d_sae, generator = case
    tensors = {
        name: whole_numbers(*shape, generator=generator)
        for name, shape in (("x", (rows, d_in)), ("W_enc", (d_in, d_sae)), ("b_enc", (d_sae,)))
    }
    for name, value in breaks:
        flat = tensors[name].view(-1)
        flat[int(torch.randint(len(flat), (), generator=generator))] = value
    x, W_enc, b_enc = tensors.values()
    extra = {"budgets": torch.full((d_sae,), 2)} if isinstance(rule, PerFeature) else {}
    extra |= {"theta": torch.ones((), dtype=torch.float32)} if isinstance(rule, Threshold) else {}
    z = x @ W_enc + b_enc
    double = {name: value.double() if value.is_floating_point() else value for name, value in extra.items()}
    expected = oracle(z, rule, double)
    for sort in (True, False) if isinstance(rule, PerToken) else (True,):
        dense = encode_select(x, W_enc, b_enc, rule, backend=backend, sort=sort, **extra).code.dense()
        assert torch.equal(dense != 0, expected)
        torch.testing.assert_close(dense, z.where(expected, 0), equal_nan=True, rtol=0, atol=0)


@each
def test_only_nan_ends_and_keeps_the_budget(backend):
    x, W_enc, b_enc = torch.full((300, 4), torch.nan), torch.ones(4, 2100), torch.zeros(2100)
    for rule, extra, kept in (
        (PerToken(5), {}, 300 * 5),
        (PerBatch(5), {}, 300 * 5),
        (PerFeature(), {"budgets": torch.full((2100,), 2)}, 2100 * 2),
        (Threshold(), {"theta": 1.0}, 300 * 2100),
    ):
        code = encode_select(x, W_enc, b_enc, rule, backend=backend, **extra).code
        assert int(code.values.isnan().sum()) == kept


@each
@pytest.mark.parametrize("rule", [PerToken(5), PerBatch(5), PerFeature(), Threshold()], ids=str)
def test_nothing_positive_keeps_nothing(backend, rule):
    generator = torch.Generator().manual_seed(0)
    W_enc, x = whole_numbers(8, 1100, generator=generator), whole_numbers(300, 8, generator=generator)
    extra = {"budgets": torch.full((1100,), 3)} if isinstance(rule, PerFeature) else {}
    extra |= {"theta": -5.0} if isinstance(rule, Threshold) else {"boundary": True}
    for b_enc in (torch.full((1100,), -100.0), torch.full((1100,), -torch.inf)):
        selection = encode_select(x, W_enc, b_enc, rule, backend=backend, **extra)
        assert not selection.code.values.any()
        assert selection.boundary is None or not selection.boundary.any()
    zero = encode_select(x, W_enc * 0, torch.zeros(1100), rule, backend=backend, **extra)
    assert not zero.code.values.any()


@each
@pytest.mark.parametrize("rule", [PerToken(4), PerBatch(4), PerFeature(), Threshold()], ids=str)
def test_any_memory_order_and_leaves_of_autograd(problem, rule, backend):
    p = problem(300, 9, 200, whole=True, dtype=torch.float32)
    extra = {"budgets": torch.full((200,), 3)} if isinstance(rule, PerFeature) else {}
    extra |= {"theta": torch.ones(200)} if isinstance(rule, Threshold) else {}
    expected = encode_select(*p.weights, rule, backend="reference", **extra).code.dense()
    strided_x = torch.stack([p.x, p.x * 0], dim=2)[:, :, 0]
    strided_W = torch.stack([p.W_enc, p.W_enc * 0], dim=2)[:, :, 0]
    one_row = p.x[:1].expand(300, 9)
    for x in (p.x, strided_x, p.x.t().contiguous().t(), p.x.clone().requires_grad_()):
        for W_enc in (p.W_enc, p.W_enc.contiguous(), strided_W, feature_major_like(p.W_enc).requires_grad_()):
            b_enc = p.b_enc.repeat_interleave(2)[::2].requires_grad_()
            code = encode_select(x, W_enc, b_enc, rule, backend=backend, **extra).code
            assert torch.equal(code.dense(), expected) and not code.values.requires_grad
    ours = encode_select(one_row, p.W_enc, p.b_enc, rule, backend=backend, **extra).code
    reference = encode_select(one_row, p.W_enc, p.b_enc, rule, backend="reference", **extra).code
    assert torch.equal(ours.dense(), reference.dense())
