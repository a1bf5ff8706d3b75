from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab_kernels.buffers import GradientBuffers
from saelab_kernels.code import SparseCode
from saelab_kernels.decode import decode, decode_error
from saelab_kernels.dispatch import available_backends
from saelab_kernels.gradients import code_gradients, pair_products
from saelab_kernels.layout import is_feature_major
from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Threshold
from saelab_kernels.select import encode_select

each_backend = pytest.mark.parametrize("backend", available_backends())
WEIGHTS = ("W_enc", "b_enc", "W_dec")


def dense_gradients(p, mask, penalty):
    """Float64 autograd through the dense encoder, a constant mask and the dense decoder."""
    W_enc, b_enc, W_dec = (t.clone().requires_grad_() for t in (p.W_enc, p.b_enc, p.W_dec))
    f = torch.relu(p.x @ W_enc + b_enc) * mask
    x_hat = f @ W_dec
    loss = ((x_hat - p.target) ** 2).mean() + penalty * f.square().sum()
    f.retain_grad()
    loss.backward()
    return {"W_enc": W_enc.grad, "b_enc": b_enc.grad, "W_dec": W_dec.grad}, f.grad, x_hat.detach()


def select(p, rule, backend):
    d_sae = p.b_enc.shape[0]
    extra = {"budgets": torch.arange(d_sae) % 4} if isinstance(rule, PerFeature) else {}
    extra |= {"theta": 0.4} if isinstance(rule, Threshold) else {}
    return encode_select(*p.weights, rule, backend=backend, **extra).code


@each_backend
@pytest.mark.parametrize("penalty", [0.0, 0.01])
@pytest.mark.parametrize("rule", [PerToken(4), PerToken(24), PerBatch(3), PerFeature(), Threshold()], ids=str)
def test_step_equals_dense_autograd(problem, rule, penalty, backend):
    p = problem(50, 6, 24, 5)
    code = select(p, rule, backend)
    dense = code.dense()
    expected, d_dense, x_hat = dense_gradients(p, dense > 0, penalty)
    torch.testing.assert_close(decode(code, p.W_dec, backend=backend), x_hat)
    g_values = None
    if penalty:
        g_values = 2 * penalty * code.values
    g_out = 2 * (x_hat - p.target) / x_hat.numel()
    got = code_gradients(code, p.x, p.W_dec, g_out, g_values=g_values, backend=backend)
    for name in WEIGHTS:
        torch.testing.assert_close(getattr(got, name), expected[name])
    torch.testing.assert_close(code.with_values(got.values).dense(), d_dense.where(dense > 0, 0))


def test_step_in_float32_over_several_tiles_is_close_to_float64(problem):
    p = problem(600, 32, 256, dtype=torch.float64)
    single = [t.float() for t in (p.x, p.W_enc, p.b_enc, p.W_dec, p.target)]
    code = encode_select(*single[:3], PerToken(8)).code
    x_hat = decode(code, single[3])
    got = code_gradients(code, single[0], single[3], 2 * (x_hat - single[4]) / x_hat.numel())
    expected, _, x_hat64 = dense_gradients(p, code.dense() > 0, 0.0)
    torch.testing.assert_close(x_hat.double(), x_hat64, rtol=1e-4, atol=1e-4)
    for name in WEIGHTS:
        torch.testing.assert_close(getattr(got, name).double(), expected[name], rtol=1e-4, atol=1e-6)


@each_backend
def test_dead_features_get_no_gradient_and_only_they_do_in_auxk(problem, backend):
    """AuxK: the code is restricted to dead columns; both of their weights, and nothing else, move."""
    p = problem(40, 6, 24)
    dead = torch.tensor([2, 9, 23])
    code = encode_select(*p.weights, PerToken(2), columns=dead, backend=backend).code
    got = code_gradients(code, p.x, p.W_dec, p.target, backend=backend)
    moved = torch.zeros(24, dtype=torch.bool)
    moved[dead] = True
    assert torch.equal(got.W_enc.abs().sum(0) > 0, moved)
    assert torch.equal(got.W_dec.abs().sum(1) > 0, moved)
    assert torch.equal(got.b_enc != 0, moved)


@each_backend
def test_inactive_entries_get_no_gradient(problem, backend):
    """Fewer than k positive pre-activations: the padding must not train the encoder."""
    p = problem(20, 6, 24)
    code = encode_select(p.x, p.W_enc, p.b_enc - 100, PerToken(5), backend=backend).code
    got = code_gradients(code, p.x, p.W_dec, p.target, g_values=code.values + 1, backend=backend)
    assert not got.values.any() and not got.W_enc.any() and not got.W_dec.any() and not got.b_enc.any()


@each_backend
def test_buffers_are_replaced_or_added_to(problem, backend):
    p = problem(40, 6, 24, 5)
    code = select(p, PerToken(3), backend)
    fresh = code_gradients(code, p.x, p.W_dec, p.target, backend=backend)
    buffers = GradientBuffers.for_shapes(6, 24, 5, dtype=torch.float64)
    for name in WEIGHTS:
        getattr(buffers, name).fill_(torch.nan)
    first = code_gradients(code, p.x, p.W_dec, p.target, buffers=buffers, backend=backend)
    assert first.W_enc.data_ptr() == buffers.W_enc.data_ptr() and is_feature_major(first.W_enc)
    assert first.W_dec.data_ptr() == buffers.W_dec.data_ptr()
    for name in WEIGHTS:
        torch.testing.assert_close(getattr(buffers, name), getattr(fresh, name))
    other = select(p, PerBatch(2), backend)
    second = code_gradients(other, p.x, p.W_dec, p.target, backend=backend)
    code_gradients(other, p.x, p.W_dec, p.target, buffers=buffers, accumulate=True, backend=backend)
    for name in WEIGHTS:
        torch.testing.assert_close(getattr(buffers, name), getattr(fresh, name) + getattr(second, name))


@each_backend
def test_without_g_out_only_the_encoder_moves(problem, backend):
    p = problem(40, 6, 24, 5)
    code = select(p, PerToken(3), backend)
    buffers = GradientBuffers.for_shapes(6, 24, 5, dtype=torch.float64)
    buffers.W_dec.fill_(7)
    got = code_gradients(
        code, p.x, p.W_dec, None, g_values=torch.ones_like(code.values), buffers=buffers, backend=backend
    )
    assert not got.W_dec.any()
    active = code.dense() > 0
    torch.testing.assert_close(got.b_enc, active.double().sum(0))
    torch.testing.assert_close(got.W_enc, p.x.t() @ active.double())
    nothing = code_gradients(code, p.x, p.W_dec, None, backend=backend)
    assert not nothing.values.any() and not nothing.W_enc.any()


@each_backend
def test_uniform_ragged_and_spare_capacity_agree(problem, backend):
    p = problem(40, 6, 24, 5)
    uniform = select(p, PerToken(3), backend)
    ragged = uniform.ragged()
    spare = SparseCode(
        torch.cat([ragged.values, torch.zeros(9, dtype=torch.float64)]),
        torch.cat([ragged.columns, torch.zeros(9, dtype=torch.int32)]),
        24,
        ragged.offsets,
        count=torch.tensor(ragged.values.shape[0]),
        overflow=torch.tensor(False),
    )
    expected = code_gradients(uniform, p.x, p.W_dec, p.target, backend=backend)
    for code in (ragged, spare):
        torch.testing.assert_close(
            decode(code, p.W_dec, backend=backend), decode(uniform, p.W_dec, backend=backend)
        )
        got = code_gradients(code, p.x, p.W_dec, p.target, backend=backend)
        for name in WEIGHTS:
            torch.testing.assert_close(getattr(got, name), getattr(expected, name))
        assert got.values.shape == code.values.shape
        torch.testing.assert_close(got.values[:120], expected.values.reshape(-1))
        assert not got.values[120:].any()


@each_backend
@pytest.mark.parametrize("rows", [0, 3])
def test_empty_codes_decode_to_the_bias_and_clear_the_buffers(problem, rows, backend):
    p = problem(rows, 6, 24, 5)
    bias = torch.arange(5, dtype=torch.float64)
    none = torch.zeros(0, dtype=torch.int64)
    for code in (
        SparseCode.from_dense(torch.zeros(rows, 24, dtype=torch.float64)),
        encode_select(*p.weights, PerToken(2), columns=none, backend=backend).code,
    ):
        assert torch.equal(decode(code, p.W_dec, bias, backend=backend), bias.expand(rows, 5))
        buffers = GradientBuffers.for_shapes(6, 24, 5, dtype=torch.float64)
        buffers.W_enc.fill_(1), buffers.b_enc.fill_(1), buffers.W_dec.fill_(1)
        code_gradients(code, p.x, p.W_dec, p.target, buffers=buffers, accumulate=True, backend=backend)
        assert buffers.W_enc.all() and buffers.W_dec.all() and buffers.b_enc.all()
        code_gradients(code, p.x, p.W_dec, p.target, buffers=buffers, backend=backend)
        assert not buffers.W_enc.any() and not buffers.W_dec.any() and not buffers.b_enc.any()


@each_backend
def test_error_is_decode_less_the_target(problem, backend):
    p = problem(40, 6, 24, 5)
    for rule in (PerToken(3), PerBatch(3), Threshold()):
        code = select(p, rule, backend)
        for bias in (None, p.W_dec[0]):
            error, squares = decode_error(code, p.W_dec, bias, p.target, backend=backend)
            expected = decode(code, p.W_dec, bias, backend="reference") - p.target
            torch.testing.assert_close(error, expected)
            torch.testing.assert_close(squares, expected.square().sum(1))


@each_backend
def test_pair_products_ignore_the_values(problem, backend):
    p = problem(40, 6, 24, 5)
    expected = p.target @ p.W_dec.t()
    code = select(p, PerToken(3), backend)
    signs = code.with_values(-code.values)  # no mask: also where an entry is not active
    for one in (code, signs, select(p, PerBatch(3), backend)):
        got = pair_products(one, p.W_dec, p.target, backend=backend)
        exact = one.ragged()
        torch.testing.assert_close(got.reshape(-1), expected[exact.row_ids(), exact.columns.long()])


@each_backend
@pytest.mark.parametrize("accumulate", [True, False])
def test_parts_leave_the_other_buffers_alone(problem, backend, accumulate):
    p = problem(40, 6, 24, 5)
    code = select(p, PerToken(3), backend)
    whole = code_gradients(code, p.x, p.W_dec, p.target, backend=backend)
    for parts, wanted in (("encoder", ("W_enc", "b_enc")), ("decoder", ("W_dec",))):
        for one in (code, SparseCode.from_dense(torch.zeros(40, 24, dtype=torch.float64))):
            buffers = GradientBuffers.for_shapes(6, 24, 5, dtype=torch.float64)
            for name in WEIGHTS:
                getattr(buffers, name).fill_(7)
            got = code_gradients(
                one,
                p.x,
                p.W_dec,
                p.target,
                buffers=buffers,
                accumulate=accumulate,
                parts=parts,
                backend=backend,
            )
            for name in WEIGHTS:
                found = getattr(whole, name) if one is code else torch.zeros_like(getattr(whole, name))
                expected = found + (7 if accumulate else 0) if name in wanted else torch.full_like(found, 7)
                torch.testing.assert_close(getattr(buffers, name), expected)
            if one is code:
                torch.testing.assert_close(got.values, whole.values)


@each_backend
def test_decode_takes_negative_values_and_a_bias(backend):
    dense = torch.tensor([[0.0, -2.0, 1.0], [0.0, 0.0, 0.0]])
    W_dec, b_dec = torch.arange(6.0).reshape(3, 2), torch.tensor([10.0, 20.0])
    x_hat = decode(SparseCode.from_dense(dense), W_dec, b_dec, backend=backend)
    assert torch.equal(x_hat, dense @ W_dec + b_dec)


def test_decode_is_the_same_bits_in_any_batch(problem):
    p = problem(300, 32, 512, dtype=torch.float32)
    for rule in (PerToken(8), Threshold()):
        code = select(p, rule, None)
        whole = decode(code, p.W_dec)
        parts = [decode(code.slice_rows(i, i + 1), p.W_dec) for i in range(5)]
        assert torch.equal(torch.cat(parts), whole[:5])


def test_two_calls_give_the_same_bits(problem):
    p = problem(300, 32, 512, dtype=torch.float32)
    code = select(p, PerToken(8), None)
    a, b = (code_gradients(code, p.x, p.W_dec, p.target) for _ in range(2))
    for name in (*WEIGHTS, "values"):
        assert torch.equal(getattr(a, name), getattr(b, name))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_code_gives_the_gradients_of_its_matrix(data):
    """Random masks, so empty rows, empty features and full rows occur; both backends against autograd."""
    rows, d_in, d_sae, d_out = (data.draw(st.integers(1, 6)) for _ in range(4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, W_dec, g_out = draw(rows, d_in), draw(d_sae, d_out), draw(rows, d_out)
    W_enc, b_enc = draw(d_in, d_sae).requires_grad_(), draw(d_sae).requires_grad_()
    f = torch.relu(x @ W_enc + b_enc) * (
        torch.rand(rows, d_sae, generator=generator) < data.draw(st.floats(0, 1))
    )
    decoder = W_dec.clone().requires_grad_()
    (f @ decoder * g_out).sum().backward()
    for backend in available_backends():
        got = code_gradients(SparseCode.from_dense(f.detach()), x, W_dec, g_out, backend=backend)
        torch.testing.assert_close(got.W_enc, W_enc.grad)
        torch.testing.assert_close(got.b_enc, b_enc.grad)
        torch.testing.assert_close(got.W_dec, decoder.grad)


@pytest.mark.usefixtures("unchecked")
def test_arguments_that_do_not_fit_are_refused(problem):
    p = problem(4, 3, 5, 2)
    code = select(p, PerToken(2), None)
    small = GradientBuffers.for_shapes(3, 4, 2, dtype=torch.float64)
    cases = [
        ((code, p.x[:3], p.W_dec, p.target), {}, "x "),
        ((code, p.x, p.W_dec[:4], p.target), {}, "W_dec"),
        ((code, p.x, p.W_dec, p.target[:, :1]), {}, "g_out"),
        ((code, p.x, p.W_dec, p.target.float()), {}, "dtype"),
        ((code, p.x, p.W_dec, p.target), {"g_values": p.x}, "g_values"),
        ((code, p.x, p.W_dec, p.target), {"accumulate": True}, "accumulate"),
        ((code, p.x, p.W_dec, p.target), {"buffers": small}, "buffers"),
    ]
    for arguments, options, text in cases:
        with pytest.raises(ValueError, match=text):
            code_gradients(*arguments, **options)
    for W_dec, b_dec in ((p.W_dec[:4], None), (p.W_dec.float(), None), (p.W_dec, p.x[0])):
        with pytest.raises(ValueError, match="decode"):
            decode(code, W_dec, b_dec)
    with pytest.raises(ValueError, match="feature-major"):
        GradientBuffers(W_enc=torch.zeros(3, 5), b_enc=torch.zeros(5), W_dec=torch.zeros(5, 2))
