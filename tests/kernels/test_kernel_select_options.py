from __future__ import annotations

import pytest
import torch

from saelab_kernels.dispatch import available_backends
from saelab_kernels.request import Attribution
from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Threshold
from saelab_kernels.select import encode_select

BACKENDS = available_backends()
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@each_backend
@pytest.mark.parametrize("rule", [PerToken(3), PerBatch(2), PerFeature(), Threshold()], ids=str)
def test_columns_restrict_the_selection(problem, naive, rule, backend):
    p = problem(30, 6, 20)
    columns = torch.tensor([17, 3, 4, 11, 0])
    given = {}
    if isinstance(rule, PerFeature):
        given["budgets"] = torch.arange(20) % 4
    if isinstance(rule, Threshold):
        given["theta"] = torch.linspace(-1, 1, 20, dtype=torch.float64)
    selection = encode_select(*p.weights, rule, columns=columns, backend=backend, **given)
    local = {name: value[columns] for name, value in given.items()}
    mask = torch.zeros(30, 20, dtype=torch.bool)
    mask[:, columns] = naive(p.z[:, columns], rule, **local)
    dense = selection.code.dense()
    assert torch.equal(dense > 0, mask)
    torch.testing.assert_close(dense, p.z.where(mask, 0))


@each_backend
@pytest.mark.parametrize("rule", [PerToken(3), PerBatch(2), PerFeature(), Threshold()], ids=str)
def test_no_columns_give_an_empty_code(problem, rule, backend):
    p = problem(30, 6, 20)
    given = {}
    if isinstance(rule, PerFeature):
        given["budgets"] = torch.ones(20, dtype=torch.int64)
    if isinstance(rule, Threshold):
        given["theta"] = torch.zeros(20, dtype=torch.float64)
    none = torch.zeros(0, dtype=torch.int64)
    code = encode_select(*p.weights, rule, columns=none, backend=backend, **given).code
    assert code.shape == (30, 20) and code.values.numel() == 0


@each_backend
def test_budgets_of_rows(problem, naive, backend):
    p = problem(30, 6, 20)
    budgets = torch.arange(30) % 6
    selection = encode_select(*p.weights, PerToken(5), budgets=budgets, boundary=True, backend=backend)
    mask = naive(p.z, PerToken(5), budgets=budgets)
    assert torch.equal(selection.code.dense() > 0, mask)
    assert torch.equal(selection.code.l0(), torch.minimum(budgets, (p.z > 0).sum(1)))
    torch.testing.assert_close(selection.boundary, p.z.where(~mask, 0).clamp_min(0).amax(1))


@each_backend
def test_scale_ranks_but_does_not_change_values(problem, naive, backend):
    p = problem(30, 6, 20)
    scale = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 3
    for rule in (PerToken(3), PerBatch(2)):
        dense = encode_select(*p.weights, rule, scale=scale, backend=backend).code.dense()
        mask = naive(p.z * scale, rule)
        assert not torch.equal(mask, naive(p.z, rule))
        torch.testing.assert_close(dense, p.z.where(mask, 0))


@each_backend
@pytest.mark.parametrize("rule", [PerToken(4), PerToken(20), PerBatch(4), PerFeature()], ids=str)
def test_score_above_boundary_is_the_kept_set(problem, rule, backend):
    p = problem(40, 6, 20)
    given = {"budgets": torch.arange(20) % 5} if isinstance(rule, PerFeature) else {}
    selection = encode_select(*p.weights, rule, boundary=True, backend=backend, **given)
    boundary = selection.boundary
    shapes = {PerToken: (40,), PerBatch: (), PerFeature: (20,)}
    assert boundary.shape == shapes[type(rule)]
    cut = boundary.unsqueeze(1) if isinstance(rule, PerToken) else boundary
    kept = selection.code.dense() > 0
    assert torch.equal(p.z > cut + 1e-12, kept)
    left_out = p.z.where(~kept, 0).clamp_min(0)
    expected = {PerToken: left_out.amax(1), PerBatch: left_out.max(), PerFeature: left_out.amax(0)}
    torch.testing.assert_close(boundary, expected[type(rule)])


@each_backend
def test_boundary_is_zero_where_nothing_positive_is_left_out(problem, backend):
    p = problem(10, 6, 20)
    every = torch.full((20,), 10)
    for rule, given in ((PerToken(20), {}), (PerBatch(20), {}), (PerFeature(), {"budgets": every})):
        selection = encode_select(*p.weights, rule, boundary=True, backend=backend, **given)
        assert not selection.boundary.any()


@each_backend
def test_band_holds_raw_values_around_theta(problem, backend):
    p = problem(40, 6, 20)
    theta = torch.linspace(0.05, 0.5, 20, dtype=torch.float64)
    selection = encode_select(*p.weights, Threshold(), theta=theta, band=0.6, backend=backend)
    near = (p.z - theta).abs() < 0.3
    assert (p.z[near] <= 0).any() and (p.z[near] > theta.expand_as(p.z)[near]).any()
    assert torch.equal(selection.band.dense() != 0, near)
    torch.testing.assert_close(selection.band.dense(), p.z.where(near, 0))
    torch.testing.assert_close(selection.code.dense(), p.z.where(p.z > theta, 0))


@each_backend
def test_band_serves_the_straight_through_gradient(problem, backend):
    """d L0 / d theta of JumpReLU: -(1/eps) K((z - theta)/eps) summed, over both halves of the kernel."""
    p = problem(200, 6, 20)
    theta, eps = torch.full((20,), 0.1, dtype=torch.float64), 0.5
    band = encode_select(*p.weights, Threshold(), theta=theta, band=eps, backend=backend).band
    counts = torch.bincount(band.columns, minlength=20)
    expected = -((p.z - theta).div(eps).abs() < 0.5).sum(0) / eps
    torch.testing.assert_close(-counts / eps, expected)


@each_backend
@pytest.mark.parametrize("norm", ["token", "global"])
@pytest.mark.parametrize("mode", ["add", "mul"])
def test_attribution_score(problem, naive, mode, norm, backend):
    p = problem(300, 6, 24, 5)
    g = torch.randn(300, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    attribution = Attribution(g=g, W_dec=p.W_dec, beta=0.7, mode=mode, norm=norm, mean_c=1.7)
    selection = encode_select(
        *p.weights, PerToken(3), attribution=attribution, boundary=True, backend=backend
    )
    c = (g @ p.W_dec.t()).abs()
    mean = c.mean(1)
    c = c / (mean.unsqueeze(1) if norm == "token" else 1.7)
    score = p.z * (1 + 0.7 * c) if mode == "add" else p.z * c
    mask = naive(score, PerToken(3))
    torch.testing.assert_close(selection.code.dense(), p.z.where(mask, 0))
    torch.testing.assert_close(selection.attribution_mean, mean)
    torch.testing.assert_close(selection.boundary, score.where(~mask, 0).clamp_min(0).amax(1))


def test_attribution_with_beta_zero_is_plain_topk_bit_for_bit(problem):
    p = problem(300, 16, 512, dtype=torch.float32)
    attribution = Attribution(g=p.target, W_dec=p.W_dec, beta=0.0)
    ours = encode_select(*p.weights, PerToken(8), attribution=attribution).code
    plain = encode_select(*p.weights, PerToken(8)).code
    assert torch.equal(ours.values, plain.values) and torch.equal(ours.columns, plain.columns)


def test_attribution_ignores_the_scale_of_the_gradient(problem):
    p = problem(50, 6, 24)
    codes = [
        encode_select(
            *p.weights, PerToken(3), attribution=Attribution(g=p.target * s, W_dec=p.W_dec, beta=1)
        ).code
        for s in (1, 1e-6)
    ]
    assert torch.equal(codes[0].columns, codes[1].columns)


@each_backend
def test_attribution_without_a_gradient_ranks_z(problem, backend):
    p = problem(20, 6, 24)
    g = torch.zeros_like(p.x)
    add = Attribution(g=g, W_dec=p.W_dec, beta=1)
    plain = encode_select(*p.weights, PerToken(3), backend=backend).code
    assert torch.equal(
        encode_select(*p.weights, PerToken(3), attribution=add, backend=backend).code.columns, plain.columns
    )
    mul = Attribution(g=g, W_dec=p.W_dec, beta=1, mode="mul")
    assert not encode_select(*p.weights, PerToken(3), attribution=mul, backend=backend).code.l0().any()


def test_attribution_is_the_same_bits_in_any_batch(problem):
    p = problem(300, 16, 40_000, dtype=torch.float32)

    def call(rows):
        attribution = Attribution(g=p.target[:rows], W_dec=p.W_dec, beta=0.3)
        return encode_select(p.x[:rows], p.W_enc, p.b_enc, PerToken(8), attribution=attribution)

    whole, one = call(300), call(1)
    assert torch.equal(one.attribution_mean, whole.attribution_mean[:1])
    assert torch.equal(one.code.values, whole.code.values[:1])


@pytest.mark.usefixtures("unchecked")
def test_arguments_that_do_not_fit_are_refused(problem):
    p = problem(4, 3, 5)
    f64 = {"dtype": torch.float64}
    cases = [
        ({"rule": PerFeature()}, "needs budgets"),
        ({"rule": PerBatch(1), "budgets": torch.ones(5, dtype=torch.int64)}, "takes no budgets"),
        ({"rule": PerToken(2), "budgets": torch.tensor([1, 2, 3, 0])}, "0 to 2"),
        ({"rule": PerToken(2), "budgets": torch.ones(4)}, "int64"),
        ({"rule": PerFeature(), "budgets": torch.tensor([1, 1, 1, 1, -1])}, "-1"),
        ({"rule": Threshold()}, "theta"),
        ({"rule": PerToken(2), "theta": 0.1}, "theta"),
        ({"rule": Threshold(), "theta": torch.zeros(4, **f64)}, "theta"),
        ({"rule": PerToken(2), "band": 0.1}, "band"),
        ({"rule": Threshold(), "theta": 0.1, "band": -0.1}, "band"),
        ({"rule": Threshold(), "theta": 0.1, "boundary": True}, "boundary"),
        ({"rule": PerToken(2), "scale": -torch.ones(5, **f64)}, "scale"),
        ({"rule": PerToken(2), "scale": torch.ones(4, **f64)}, "scale"),
        ({"rule": PerToken(2), "columns": torch.tensor([1], dtype=torch.int32)}, "columns"),
        ({"rule": PerToken(2), "backend": "none"}, "unknown backend"),
        ({"rule": "per_token"}, "not a rule"),
        ({"rule": PerToken(2), "x": p.x.float()}, "dtype"),
        ({"rule": PerToken(2), "x": p.x[:, :2]}, "d_in"),
        (
            {"rule": PerToken(2), "attribution": Attribution(g=p.x[:1], W_dec=p.W_dec, beta=1)},
            "attribution",
        ),
    ]
    for given, text in cases:
        arguments = {"x": p.x, "W_enc": p.W_enc, "b_enc": p.b_enc, **given}
        with pytest.raises(ValueError, match=text):
            encode_select(**arguments)


@pytest.mark.parametrize(
    "given",
    [{"beta": -1.0}, {"beta": float("nan")}, {"beta": 1, "norm": "global"}, {"beta": 1, "mode": "max"}],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_attributions_are_refused(given):
    with pytest.raises(ValueError, match="Attribution"):
        Attribution(g=torch.zeros(1, 1), W_dec=torch.zeros(1, 1), **given)
