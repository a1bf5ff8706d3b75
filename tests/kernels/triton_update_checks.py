"""Decode, gradients and the optimiser step of backend "triton" against the reference, in Triton's interpreter.

Run by `test_triton_update` in a process of its own with TRITON_INTERPRET=1: a load outside a tensor ends it.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from saelab_kernels.adam_state import NAMES, AdamOptions, AdamState, Weights
from saelab_kernels.backends.reference import BACKEND as REFERENCE
from saelab_kernels.backends.triton import BACKEND, TritonBackend
from saelab_kernels.backends.triton.launch import Tuning
from saelab_kernels.buffers import GradientBuffers, GradientTerm
from saelab_kernels.code import SparseCode

GRADIENTS = ("W_enc", "b_enc", "W_dec")
TOLERANCE = {torch.float64: (1e-10, 1e-11), torch.float32: (1e-4, 2e-5)}
QUICK = settings(deadline=None, phases=[Phase.explicit, Phase.generate])
"""Without shrinking, which takes minutes in the interpreter."""
dtypes = st.sampled_from([torch.float64, torch.float32])


@pytest.fixture(autouse=True, scope="module")
def _poison():
    """Memory that is made without contents is filled with NaN or the largest whole number."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(
        True
    )  # torch.utils.deterministic.fill_uninitialized_memory is on by default
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


class Draw:
    """Random tensors and codes of one example."""

    def __init__(self, data) -> None:
        self.data = data
        self.dtype = data.draw(dtypes)
        self.generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))

    def any(self, *options):
        return self.data.draw(st.sampled_from(options))

    def tensor(self, *shape: int) -> torch.Tensor:
        """Sometimes with its columns apart, sometimes with room between its rows."""
        made = torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.dtype)
        layout = self.any("plain", "transposed", "spaced") if len(shape) == 2 else "plain"
        if layout == "transposed":
            return made.t().contiguous().t()
        return torch.cat([made, made], dim=1)[:, : shape[1]] if layout == "spaced" else made

    def code(self, rows: int, d_sae: int) -> tuple[SparseCode, SparseCode]:
        """A code with positive, negative and zero values, and the same without spare capacity."""
        shape = (rows, d_sae)
        mask = torch.rand(shape, generator=self.generator) < self.any(0.0, 0.2, 0.7)
        mask[:, self.data.draw(st.integers(0, d_sae - 1))] |= self.any(True, False)  # one dense feature
        dense = torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype) * mask
        form = self.any("uniform", "ragged", "spare")
        if form == "uniform":
            columns = dense.abs().sort(dim=1, descending=True, stable=True).indices[:, : self.any(1, d_sae)]
            code = SparseCode(dense.gather(1, columns), columns.to(torch.int32), d_sae)
            return code, code
        exact = SparseCode.from_dense(dense)
        if form == "ragged":
            return exact, exact
        spare = self.data.draw(st.integers(0, 5))
        code = SparseCode(
            torch.cat([exact.values, torch.full((spare,), torch.nan, dtype=self.dtype)]),
            torch.cat([exact.columns, torch.full((spare,), 2**31 - 1, dtype=torch.int32)]),
            d_sae,
            exact.offsets,
            count=torch.tensor(exact.values.shape[0]),
            overflow=torch.tensor(False),
        )
        return code, exact

    def close(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        rtol, atol = TOLERANCE[self.dtype]
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@settings(QUICK, max_examples=25)
@given(st.data())
def test_decode_of_any_code(data):
    draw = Draw(data)
    rows, d_sae = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 9))
    d_out = draw.any(1, 5, 17, 300)
    code, exact = draw.code(rows, d_sae)
    W_dec, target = draw.tensor(d_sae, d_out), draw.tensor(rows, d_out)
    b_dec = draw.any(None, draw.tensor(d_out))
    draw.close(BACKEND.decode(code, W_dec, b_dec), REFERENCE.decode(exact, W_dec, b_dec))
    error, squares = BACKEND.decode_error(code, W_dec, b_dec, target)
    expected, expected_squares = REFERENCE.decode_error(exact, W_dec, b_dec, target)
    draw.close(error, expected)
    draw.close(squares, expected_squares)


@settings(QUICK, max_examples=20)
@given(st.data())
def test_pair_products_of_any_code(data):
    draw = Draw(data)
    rows, d_sae, d_out = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 6)), draw.any(1, 5, 300)
    code, exact = draw.code(rows, d_sae)
    W_dec, g_out = draw.tensor(d_sae, d_out), draw.tensor(rows, d_out)
    found = BACKEND.pair_products(code, W_dec, g_out)
    used = exact.values.numel()
    assert found.shape == code.values.shape and not found.reshape(-1)[used:].any()
    draw.close(found.reshape(-1)[:used], REFERENCE.pair_products(exact, W_dec, g_out).reshape(-1))


@settings(QUICK, max_examples=25)
@given(st.data())
def test_gradients_of_any_code(data):
    draw = Draw(data)
    rows, d_sae = data.draw(st.integers(0, 8)), data.draw(st.integers(1, 5))
    d_in, d_out = draw.any(1, 6, 270), draw.any(1, 6, 300)
    code, exact = draw.code(rows, d_sae)
    W_dec, x = draw.tensor(d_sae, d_out), draw.tensor(rows, d_in)
    g_out = draw.any(None, draw.tensor(rows, d_out))
    g_values = draw.any(
        None, torch.linspace(-1, 1, code.values.numel(), dtype=draw.dtype).view(code.values.shape)
    )
    accumulate, parts = draw.any(True, False), draw.any("both", "encoder", "decoder")
    filling = 7.0 if accumulate or parts != "both" else torch.nan
    backend, used = TritonBackend(Tuning(chunk=draw.any(1, 2, 64))), exact.values.numel()
    results = []
    for one, source in ((backend, code), (REFERENCE, exact)):
        buffers = GradientBuffers.for_shapes(d_in, d_sae, d_out, dtype=draw.dtype)
        for name in GRADIENTS:
            getattr(buffers, name).fill_(filling)
        cut = None if g_values is None else g_values.reshape(-1)[:used].view(exact.values.shape)
        term = GradientTerm(source, x, g_out, g_values if source is code else cut)
        results.append(one.code_gradients(term, W_dec, buffers, accumulate, parts))
    found, expected = results
    for name in GRADIENTS:
        draw.close(getattr(found, name), getattr(expected, name))
    assert found.values.shape == code.values.shape and not found.values.reshape(-1)[used:].any()
    draw.close(found.values.reshape(-1)[:used], expected.values.reshape(-1))


@settings(QUICK, max_examples=25)
@given(st.data())
def test_steps_on_any_terms(data):
    draw = Draw(data)
    rows, d_sae, d_out = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 5)), draw.any(1, 6, 300)
    options = AdamOptions(
        clip=draw.any(None, 0.3, 1e6),
        unit_rows=draw.any(True, False),
        input_bias=draw.any(True, False),
        eps=1e-3,
    )
    d_in = d_out if options.input_bias else draw.any(1, 6, 270)
    mine = new_weights(draw, d_in, d_sae, d_out)
    theirs = Weights(*(t.clone(memory_format=torch.preserve_format) for t in mine.named().values()))
    states = AdamState.new(mine), AdamState.new(theirs)
    tuning = Tuning(chunk=draw.any(1, 2, 64), encoder_programs=draw.any(1, 2, 8192))
    backend = TritonBackend(tuning)
    lr = draw.any(0.05, torch.tensor(0.05, dtype=torch.float64))
    for _ in range(2):
        terms, exact_terms, shared = [], [], draw.tensor(rows, d_in)
        for _ in range(data.draw(st.integers(1, 2))):
            code, exact = draw.code(rows, d_sae)
            x, g_out = draw.any(shared, draw.tensor(rows, d_in)), draw.any(None, draw.tensor(rows, d_out))
            slope, adds_b_dec = draw.any(None, 0.2), draw.any(True, False)
            for one, kept in ((code, terms), (exact, exact_terms)):
                kept.append(
                    GradientTerm(one, x, g_out, None if slope is None else slope + 0 * one.values, adds_b_dec)
                )
        norm = backend.adam_step(terms, mine, states[0], options, lr)
        expected = REFERENCE.adam_step(exact_terms, theirs, states[1], options, lr)
        draw.close(norm, expected)
        for name in NAMES:
            draw.close(getattr(mine, name), getattr(theirs, name))
            for moment in ("exp_avg", "exp_avg_sq"):
                found, wanted = (getattr(getattr(state, moment), name) for state in states)
                draw.close(found, wanted)
    assert float(states[0].steps) == 2


def new_weights(draw: Draw, d_in: int, d_sae: int, d_out: int) -> Weights:
    W_dec = torch.nn.functional.normalize(draw.tensor(d_sae, d_out).contiguous())
    return Weights(draw.tensor(d_sae, d_in).contiguous().t(), draw.tensor(d_sae), W_dec, draw.tensor(d_out))


@settings(QUICK, max_examples=6)
@given(st.data())
def test_two_calls_give_the_same_bits(data):
    draw = Draw(data)
    code, _ = draw.code(6, 4)
    x, g_out = draw.tensor(6, 5), draw.tensor(6, 5)
    start, outcomes = new_weights(draw, 5, 4, 5), []
    terms = [GradientTerm(code, x, g_out), GradientTerm(code, x, -0.5 * g_out)]
    backend = TritonBackend(Tuning(chunk=2))
    for _ in range(2):
        weights = Weights(*(t.clone(memory_format=torch.preserve_format) for t in start.named().values()))
        buffers = GradientBuffers.for_shapes(5, 4, 5, dtype=draw.dtype)
        found = backend.code_gradients(terms[0], weights.W_dec, buffers, False, "both")
        norm = backend.adam_step(terms, weights, AdamState.new(weights), AdamOptions(clip=0.5), 0.1)
        outcomes.append([norm, found.values, *buffers_of(buffers), *weights.named().values()])
    for one, other in zip(*outcomes, strict=True):
        assert torch.equal(one, other)


def buffers_of(buffers: GradientBuffers) -> list[torch.Tensor]:
    return [getattr(buffers, name) for name in GRADIENTS]


def test_bfloat16_is_added_in_float32():
    """300 ones: a sum in bfloat16 would stay at 256."""
    ones = torch.ones(1, 300, dtype=torch.bfloat16)
    code = SparseCode(ones, torch.arange(300, dtype=torch.int32).view(1, 300), 300)
    W_dec = torch.ones(300, 3, dtype=torch.bfloat16)
    x_hat = BACKEND.decode(code, W_dec, None)
    assert x_hat.dtype == torch.bfloat16 and torch.equal(
        x_hat, torch.full((1, 3), 300.0, dtype=torch.bfloat16)
    )
    error, squares = BACKEND.decode_error(code, W_dec, W_dec[0], x_hat)
    assert torch.equal(error, W_dec[:1]) and squares.item() == 3


def test_gradients_of_bfloat16_are_those_of_the_same_numbers_in_float64():
    generator = torch.Generator().manual_seed(0)
    x, g_out, W_dec = (torch.randn(7, 9, generator=generator).bfloat16() for _ in range(3))
    dense = torch.randn(7, 7, generator=generator).bfloat16()
    buffers = [GradientBuffers.for_shapes(9, 7, 9, dtype=dtype) for dtype in (torch.bfloat16, torch.float64)]
    term = GradientTerm(SparseCode.from_dense(dense), x, g_out)
    exact = GradientTerm(SparseCode.from_dense(dense.double()), x.double(), g_out.double())
    TritonBackend(Tuning(chunk=3)).code_gradients(term, W_dec, buffers[0], False, "decoder")
    REFERENCE.code_gradients(exact, W_dec.double(), buffers[1], False, "decoder")
    # The interpreter cuts the last bits off where a GPU rounds to the nearest.
    torch.testing.assert_close(buffers[0].W_dec.double(), buffers[1].W_dec, rtol=2**-7, atol=1e-6)


def test_an_overflowed_code_is_read_only_as_far_as_it_goes():
    """Its offsets point behind its entries; what is there counts, and nothing outside is read."""
    code = SparseCode(
        torch.tensor([1.0, 2.0]),
        torch.tensor([0, 1], dtype=torch.int32),
        2,
        torch.tensor([0, 1, 3, 5]),
        count=torch.tensor(5),
        overflow=torch.tensor(True),
    )
    W_dec = torch.tensor([[1.0, 10.0], [2.0, 20.0]])
    held = SparseCode(code.values, code.columns, 2, torch.tensor([0, 1, 2, 2]))
    assert torch.equal(BACKEND.decode(code, W_dec, None), REFERENCE.decode(held, W_dec, None))
    assert torch.equal(BACKEND.pair_products(code, W_dec, torch.ones(3, 2)), torch.tensor([11.0, 22.0]))
