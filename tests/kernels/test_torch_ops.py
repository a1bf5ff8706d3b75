"""The operators registered with torch: the same results as the functions behind them, and exact derivatives."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torch_ops_cases import BUDGETS, ENCODERS, RULES, THETA, copies, counted, leaves, pairs_of, small

from saelab_kernels import adam, select, torch_ops
from saelab_kernels import decode as public
from saelab_kernels.adam_state import NAMES, AdamOptions, AdamState, Weights
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.code import SparseCode
from saelab_kernels.dispatch import available_backends
from saelab_kernels.rules import PerToken, Threshold

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
each_encoder = pytest.mark.parametrize("name", ENCODERS)
each_backend = pytest.mark.parametrize("backend", available_backends())


@each_backend
@each_encoder
def test_they_return_what_the_public_functions_return(problem, name, backend):
    p = small(problem)
    rule, options = RULES[name]
    expected = select.encode_select(*p.weights, rule, backend=backend, **options)
    pairs = pairs_of(p, name, backend)
    code = expected.code.trimmed()
    assert torch.equal(pairs.values, code.values) and torch.equal(pairs.columns, code.columns)
    assert (pairs.offsets is None) == (code.offsets is None) == (name == "top_k")
    if name == "threshold":
        assert pairs.boundary is None
    else:
        assert torch.equal(pairs.boundary, expected.boundary)
    assert torch.equal(pairs.code(12).dense(), code.dense())
    x_hat = torch_ops.decode(pairs, p.W_dec, p.target[0], backend)
    assert torch.equal(x_hat, public.decode(code, p.W_dec, p.target[0], backend))
    error = torch_ops.decode_error(pairs, p.W_dec, None, p.target, backend)
    for mine, theirs in zip(error, public.decode_error(code, p.W_dec, None, p.target, backend), strict=True):
        assert torch.equal(mine, theirs)


def test_options_reach_the_selection(problem):
    p = small(problem)
    columns, scale = torch.tensor([7, 2, 5, 0]), torch.linspace(0.1, 3, 12, dtype=torch.float64)
    for name in ENCODERS:
        assert set(pairs_of(p, name, columns=columns).columns.flatten().tolist()) <= {0, 2, 5, 7}
        scaled = pairs_of(p, name, scale=scale).code(12).dense()
        rule, options = RULES[name]
        expected = select.encode_select(*p.weights, rule, scale=scale, backend="torch", **options)
        assert torch.equal(scaled, expected.code.dense())
        if name != "per_feature":  # a column's own order is the same at any scale
            assert not torch.equal(scaled, pairs_of(p, name).code(12).dense())
    budgets = torch.arange(7) % 4
    limited = torch_ops.encode_top_k(*p.weights, 3, budgets=budgets, sort=False, backend="torch")
    assert torch.equal((limited.values > 0).sum(1), torch.minimum(budgets, (p.z > 0).sum(1)))


@each_backend
@each_encoder
def test_encode_has_the_exact_derivative(problem, name, backend):
    p = small(problem)

    def values(x, W_enc, b_enc):
        return ENCODERS[name](x, W_enc, b_enc, backend=backend).values

    assert values(*p.weights).any()
    assert gradcheck(values, tuple(leaves(*p.weights)))


@each_backend
@pytest.mark.parametrize("name", ["top_k", "threshold"])
def test_decode_and_its_error_have_the_exact_derivative(problem, name, backend):
    p = small(problem)
    pairs = pairs_of(p, name)
    signs = torch.where(torch.arange(pairs.values.numel()) % 2 == 0, 1.0, -1.0).view_as(pairs.values)
    values, W_dec, b_dec, target = leaves(pairs.values * signs, p.W_dec, p.target[0], p.target)

    def x_hat(values, W_dec, b_dec):
        return torch_ops.decode(pairs._replace(values=values), W_dec, b_dec, backend)

    def error(values, W_dec, b_dec, target):
        return torch_ops.decode_error(pairs._replace(values=values), W_dec, b_dec, target, backend)

    assert gradcheck(x_hat, (values, W_dec, b_dec))
    assert gradcheck(error, (values, W_dec, b_dec, target))


@each_backend
@pytest.mark.parametrize("order", ["feature-major", "row-major"])
@each_encoder
def test_a_whole_step_equals_dense_autograd_in_any_memory_order(problem, name, order, backend):
    p = small(problem)
    W_enc = p.W_enc if order == "feature-major" else p.W_enc.contiguous()
    parts = (p.x, W_enc, p.b_enc, p.W_dec, p.target[0])
    mine, dense = leaves(*parts), leaves(*parts)
    pairs = ENCODERS[name](*mine[:3], backend=backend)
    x_hat = torch_ops.decode(pairs, *mine[3:], backend)
    ((x_hat - p.target).square().sum() + pairs.values.tanh().sum()).backward()
    x, W, b_enc, W_dec, b_dec = dense
    kept = pairs.code(12).dense() > 0
    f = (x @ W + b_enc).where(kept, 0)
    ((f @ W_dec + b_dec - p.target).square().sum() + f.tanh().sum()).backward()
    for ours, theirs in zip(mine, dense, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
        assert ours.grad.stride() == ours.stride()


def test_the_gradient_of_a_feature_major_encoder_is_feature_major_before_it_is_stored(problem):
    p = small(problem)
    weights = leaves(*p.weights)
    pairs = torch_ops.encode_top_k(*weights, 3, backend="torch")
    (gradient,) = torch.autograd.grad(pairs.values.sum(), weights[1:2])
    assert gradient.stride() == weights[1].stride() == (1, 4)


def test_only_what_is_asked_for_is_computed(problem):
    """An input that needs no gradient gets none, and no operator runs for it."""
    p = small(problem)
    for wanted, operators in (
        (0, {"saelab::decode"}),
        (1, {"saelab::code_gradients"}),
        (3, {"saelab::code_gradients"}),
        (4, set()),
    ):
        parts = [p.x, p.W_enc, p.b_enc, p.W_dec, p.target[0]]
        parts[wanted] = parts[wanted].detach().clone(memory_format=torch.preserve_format).requires_grad_()
        pairs = torch_ops.encode_top_k(*parts[:3], 3, backend="torch")
        loss = torch_ops.decode(pairs, *parts[3:], "torch").square().sum()
        through = {"saelab::pair_products"} if wanted < 3 else set()
        assert {name for name in counted(loss.backward) if name.startswith("saelab::")} == operators | through


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_arguments_that_are_left_out_change_nothing(problem, monkeypatch, backend):
    """torch drops arguments that equal their defaults, also from what backward sees."""
    monkeypatch.setenv("SAELAB_KERNELS", backend)
    p, ops = small(problem), torch.ops.saelab
    encoders = {
        "top_k": lambda *weights: ops.encode_top_k(*weights, 3)[:2],
        "per_batch": lambda *weights: ops.encode_per_batch(*weights, 2.5)[:3],
        "per_feature": lambda *weights: ops.encode_per_feature(*weights, BUDGETS)[:3],
        "threshold": lambda *weights: ops.encode_threshold(*weights, THETA),
    }
    for name, encode in encoders.items():
        found = []
        for short in (True, False):
            mine = leaves(*p.weights, p.W_dec, p.target)
            if short:
                code = (*encode(*mine[:3]), None)[:3]
                x_hat, error = ops.decode(*code, mine[3]), ops.decode_error(*code, mine[3], None, mine[4])
            else:
                pairs = ENCODERS[name](*mine[:3], backend=backend)
                x_hat = torch_ops.decode(pairs, mine[3], None, backend)
                error = torch_ops.decode_error(pairs, mine[3], None, mine[4], backend)
            (x_hat.sin().sum() + error[0].cos().sum() + error[1].sum()).backward()
            found.append([t.grad for t in mine])
        for short, full in zip(*found, strict=True):
            assert torch.equal(short, full)


@each_backend
def test_padding_sends_nothing_to_the_input_when_the_weights_are_frozen(problem, backend):
    p = small(problem)
    values = []
    for frozen in (True, False):
        x, W_enc, b_enc = leaves(*p.weights)
        weights = (W_enc.detach(), b_enc.detach()) if frozen else (W_enc, b_enc)
        pairs = torch_ops.encode_top_k(x, *weights, 12, backend=backend)
        assert (pairs.values == 0).any()
        (pairs.values + 1).square().sum().backward()
        values.append(x.grad)
    kept = p.z > 0
    torch.testing.assert_close(values[0], (2 * (p.z + 1) * kept) @ p.W_enc.t())
    assert torch.equal(values[0], values[1])


def test_the_boundary_and_theta_have_no_gradient(problem):
    p = small(problem)
    for name in ("top_k", "per_batch", "per_feature"):
        pairs = ENCODERS[name](*leaves(*p.weights), backend="torch")
        assert pairs.values.requires_grad and not pairs.boundary.requires_grad
    theta = THETA.clone().requires_grad_()
    pairs = torch_ops.encode_threshold(*leaves(*p.weights), theta, backend="torch")
    pairs.values.sum().backward()
    assert theta.grad is None


@each_encoder
def test_second_derivatives_are_refused(problem, name):
    p = small(problem)
    weights, W_dec = leaves(*p.weights), p.W_dec.clone().requires_grad_()
    pairs = ENCODERS[name](*weights, backend="torch")
    for output, inputs in ((pairs.values, weights), (torch_ops.decode(pairs, W_dec, None, "torch"), [W_dec])):
        first = torch.autograd.grad(output.square().sum(), inputs, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            sum(g.square().sum() for g in first).backward()


@each_backend
def test_adam_step_is_that_of_the_optimiser(problem, backend):
    p = problem(30, 6, 12, 6)
    unit = torch.nn.functional.normalize(p.W_dec)
    mine, theirs = (Weights(*copies(p.W_enc, p.b_enc, unit, p.target[0])) for _ in range(2))
    options = AdamOptions(clip=0.5)
    state, optimiser = AdamState.new(mine), adam.SparseAdam(theirs, options, backend)
    for lr in (0.1, torch.full((), 0.05, dtype=torch.float64)):
        code = select.encode_select(p.x, mine.W_enc, mine.b_enc, PerToken(3), backend=backend).code
        spare = select.encode_select(
            p.x, mine.W_enc, mine.b_enc, Threshold(), theta=1.0, backend=backend
        ).code
        terms = [
            GradientTerm(code, p.x, p.target, torch.sign(code.values)),
            GradientTerm(spare, p.x, None, spare.values, adds_b_dec=False),
        ]
        norm = torch_ops.adam_step(terms, mine, state, options, lr, backend)
        assert torch.equal(norm, optimiser.step(terms, lr))
    assert float(state.steps) == 2
    saved = optimiser.state_tensors()
    for name in NAMES:
        assert torch.equal(getattr(mine, name), getattr(theirs, name))
        assert torch.equal(getattr(state.exp_avg, name), saved[f"{name}.exp_avg"])
        assert torch.equal(getattr(state.exp_avg_sq, name), saved[f"{name}.exp_avg_sq"])


@pytest.mark.usefixtures("unchecked")
def test_adam_step_refuses_what_does_not_fit(problem):
    p = problem(8, 4, 12, 4)
    weights = Weights(p.W_enc, p.b_enc, p.W_dec, p.target[0])
    state, options = AdamState.new(weights), AdamOptions()
    code = SparseCode.from_dense(p.z.relu())
    for terms, text in (
        ([], "at least one term"),
        ([GradientTerm(code, p.x[:, :3], p.target)], "does not fit W_enc"),
        ([GradientTerm(code, p.x, p.target[:, :3])], "g_out"),
    ):
        with pytest.raises(ValueError, match=text):
            torch_ops.adam_step(terms, weights, state, options, 0.1, "torch")
    assert float(state.steps) == 0
