"""The fused optimiser step of every backend, against float64 autograd with torch's Adam, and against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import NAMES, AdamOptions, Weights
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.code import SparseCode
from saelab_kernels.decode import decode
from saelab_kernels.dispatch import available_backends
from saelab_kernels.layout import feature_major_like
from saelab_kernels.rules import PerToken, Threshold
from saelab_kernels.select import encode_select

each_backend = pytest.mark.parametrize("backend", available_backends())


def make_weights(p, unit_rows=True, dtype=None) -> Weights:
    W_dec = p.W_dec / p.W_dec.norm(dim=1, keepdim=True) if unit_rows else p.W_dec
    parts = (feature_major_like(p.W_enc), p.b_enc, W_dec, p.target[0] * 0.1)
    copies = [part.clone(memory_format=torch.preserve_format).to(dtype or part.dtype) for part in parts]
    return Weights(*copies)


def descend(weights, p, options, steps, backend, lr=0.01, aux=False):
    """Some steps of a TopK SAE on fixed data; the norms."""
    adam, norms = SparseAdam(weights, options, backend), []
    for _ in range(steps):
        x = p.x - weights.b_dec if options.input_bias else p.x
        code = encode_select(x, weights.W_enc, weights.b_enc, PerToken(4), backend=backend).code
        x_hat = decode(code, weights.W_dec, weights.b_dec, backend=backend)
        terms = [GradientTerm(code, x, 2 * (x_hat - p.target) / len(p.x), 0.01 * torch.sign(code.values))]
        if aux:
            columns = torch.tensor([1, 5, 7])
            spare = encode_select(
                x, weights.W_enc, weights.b_enc, PerToken(2), columns=columns, backend=backend
            )
            e_hat = decode(spare.code, weights.W_dec, backend=backend)
            terms.append(GradientTerm(spare.code, x, 0.3 * (e_hat - p.target), adds_b_dec=False))
            some = torch.tensor([9, 5, 20, 2])
            W_enc, W_dec = weights.W_enc.t()[some].t(), weights.W_dec[some]
            for k in (2, 4):  # the same features twice, of which a large share is kept
                few = encode_select(x, W_enc, weights.b_enc[some], PerToken(k), backend=backend).code
                e_hat = decode(few, W_dec, backend=backend)
                terms.append(GradientTerm(few, x, 0.2 * (e_hat - p.target), adds_b_dec=k == 2, features=some))
        norms.append(float(adam.step(terms, lr)))
    return norms, adam


@each_backend
@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
@pytest.mark.parametrize("unit_rows", [True, False])
@pytest.mark.parametrize("input_bias", [True, False])
def test_steps_equal_the_reference(problem, backend, clip, unit_rows, input_bias):
    p = problem(60, 6, 24, 6)
    options = AdamOptions(clip=clip, unit_rows=unit_rows, input_bias=input_bias)
    mine, theirs = make_weights(p, unit_rows), make_weights(p, unit_rows)
    norms, adam = descend(mine, p, options, 4, backend, aux=True)
    expected, reference = descend(theirs, p, options, 4, "reference", aux=True)
    assert norms == pytest.approx(expected, rel=1e-6)
    for name in NAMES:
        torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), rtol=1e-7, atol=1e-9)
    for name, tensor in reference.state_tensors().items():
        torch.testing.assert_close(adam.state_tensors()[name], tensor, rtol=1e-7, atol=1e-9)


@each_backend
def test_without_constraints_it_is_torchs_adam_on_dense_autograd(problem, backend):
    p = problem(60, 6, 24, 6)
    options = AdamOptions(unit_rows=False)
    mine = make_weights(p, unit_rows=False)
    leaves = {name: t.clone().requires_grad_() for name, t in mine.named().items()}
    torch_adam = torch.optim.Adam(leaves.values(), lr=0.01)
    for _ in range(3):
        x = p.x - leaves["b_dec"]
        z = x @ leaves["W_enc"] + leaves["b_enc"]
        top = z.topk(4, dim=1)
        f = torch.zeros_like(z).scatter(1, top.indices, top.values.relu())
        loss = (f @ leaves["W_dec"] + leaves["b_dec"] - p.target).square().sum() / len(p.x)
        loss = loss + 0.01 * f.sum()
        torch_adam.zero_grad()
        loss.backward()
        torch_adam.step()
    descend(mine, p, options, 3, backend)
    for name in NAMES:
        torch.testing.assert_close(getattr(mine, name), leaves[name].detach(), rtol=1e-7, atol=1e-9)


@each_backend
def test_rows_have_norm_one_after_the_step_and_clipping_bounds_the_move(problem, backend):
    p = problem(60, 6, 24, 6)
    weights = make_weights(p)
    _, adam = descend(weights, p, AdamOptions(clip=0.1), 1, backend)
    torch.testing.assert_close(weights.W_dec.norm(dim=1), torch.ones(24, dtype=torch.float64))
    moved = torch.stack([adam.state_tensors()[f"{name}.exp_avg"].norm() for name in NAMES]).norm()
    assert float(moved) == pytest.approx(0.1 * 0.1, rel=1e-4)  # (1 - beta1) times the clipped norm


@each_backend
def test_saved_moments_continue_with_the_same_bits(problem, backend):
    p = problem(60, 6, 24, 6, dtype=torch.float32)
    options = AdamOptions(clip=0.5)
    whole, first = make_weights(p), make_weights(p)
    descend(whole, p, options, 1, backend)
    _, adam = descend(first, p, options, 1, backend)
    saved = {name: tensor.clone() for name, tensor in adam.state_tensors().items()}
    code = encode_select(p.x, first.W_enc, first.b_enc, PerToken(4), backend=backend).code
    terms = [GradientTerm(code, p.x, p.target)]
    continued = SparseAdam(whole, options, backend)
    continued.load_state_tensors(saved)
    adam.step(terms, 0.01)
    continued.step(terms, 0.01)
    for name in NAMES:
        assert torch.equal(getattr(whole, name), getattr(first, name))


@each_backend
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_codes_move_the_weights_as_the_reference_does(backend, data):
    """Empty rows and features, several ragged terms, float32 data of any shape; the workspace is reused."""
    rows, d_in, d_sae, d_out = (data.draw(st.integers(1, 7)) for _ in range(4))
    d_out = d_in if data.draw(st.booleans()) else d_out
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    options = AdamOptions(
        clip=data.draw(st.sampled_from([None, 0.3])),
        unit_rows=data.draw(st.booleans()),
        input_bias=d_in == d_out and data.draw(st.booleans()),
    )
    mine = Weights(
        draw(d_sae, d_in).t(), draw(d_sae), torch.nn.functional.normalize(draw(d_sae, d_out)), draw(d_out)
    )
    theirs = Weights(*(t.clone(memory_format=torch.preserve_format) for t in mine.named().values()))
    ours, reference = SparseAdam(mine, options, backend), SparseAdam(theirs, options, "reference")
    for _ in range(2):
        terms = []
        for _ in range(data.draw(st.integers(1, 3))):
            density = data.draw(st.floats(0, 1))
            dense = draw(rows, d_sae) * (torch.rand(rows, d_sae, generator=generator) < density)
            g_out = draw(rows, d_out) if data.draw(st.booleans()) else None
            terms.append(GradientTerm(SparseCode.from_dense(dense), draw(rows, d_in), g_out))
        norm, expected = ours.step(terms, 0.05), reference.step(terms, 0.05)
        torch.testing.assert_close(norm, expected)
        for name in NAMES:
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name))


@each_backend
@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_refused(problem, backend):
    p = problem(8, 3, 5, 3)
    weights = make_weights(p)
    adam = SparseAdam(weights, AdamOptions(), backend)
    code = encode_select(p.x, weights.W_enc, weights.b_enc, Threshold(), theta=0.0, backend=backend).code
    with pytest.raises(ValueError, match="at least one term"):
        adam.step([], 0.1)
    with pytest.raises(ValueError, match="g_out"):
        adam.step([GradientTerm(code, p.x, p.target[:, :1])], 0.1)
    with pytest.raises(ValueError, match="does not fit W_enc"):
        adam.step([GradientTerm(code, p.x[:, :2], p.target)], 0.1)
    for wrong in ({"beta1": 1.0}, {"eps": 0.0}, {"clip": 0.0}):
        with pytest.raises(ValueError, match="AdamOptions"):
            AdamOptions(**wrong)
    with pytest.raises(ValueError, match="feature-major"):
        Weights(torch.zeros(3, 5), torch.zeros(5), torch.zeros(5, 3), torch.zeros(3))


@each_backend
def test_padding_has_no_gradient_also_among_some_features(problem, backend):
    """An L1 penalty gives padding entries (value 0, column 0) a direct gradient, which column 0 must not get."""
    p = problem(30, 6, 24, 6)
    some = torch.tensor([0, 3, 5, 9])
    values = torch.rand(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[:, 2] = 0
    columns = torch.tensor([0, 2, 0], dtype=torch.int32).expand(30, 3).contiguous()
    code = SparseCode(values, columns, 4)
    main = encode_select(p.x, p.W_enc, p.b_enc, PerToken(2), backend=backend).code
    norms = []
    for name in (backend, "reference"):
        terms = [
            GradientTerm(main, p.x, p.target),
            GradientTerm(code, p.x, p.target, torch.ones_like(values), features=some),
        ]
        norms.append(SparseAdam(make_weights(p), AdamOptions(), name).step(terms, 0.01))
    torch.testing.assert_close(norms[0], norms[1])
