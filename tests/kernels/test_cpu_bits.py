"""The backend "cpu" gives the same bits whatever was in memory before, on any number of threads, in any batch.

By design: blocks and tiles have fixed sizes, whoever works on them, and sums over blocks are taken in their order.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights
from saelab_kernels.backends.cpu import tiles
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.decode import decode, decode_error
from saelab_kernels.gradients import code_gradients, pair_products
from saelab_kernels.request import Attribution
from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Threshold
from saelab_kernels.select import encode_select

BACKENDS = ("cpu", "cpu-float32")
ROWS, D, D_SAE = 700, 33, 1100


def make(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_weights() -> Weights:
    W_dec = torch.nn.functional.normalize(make(D_SAE, D, seed=2))
    return Weights(make(D_SAE, D, seed=1).t(), 0.1 * make(D_SAE, seed=3), W_dec, 0.1 * make(D, seed=4))


def selections(x: Tensor, w: Weights, backend: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of every kind of selection."""
    attribution = Attribution(g=make(len(x), D, seed=7), W_dec=w.W_dec, beta=0.3)
    for name, rule, extra in (
        ("few", PerToken(9), {"boundary": True}),
        ("many", PerToken(400), {"sort": False, "columns": torch.arange(0, D_SAE, 2)}),
        ("scaled", PerToken(9), {"scale": w.W_dec[:, 0].abs(), "boundary": True}),
        ("attributed", PerToken(9), {"attribution": attribution}),
        ("batch", PerBatch(7.5), {"boundary": True}),
        ("feature", PerFeature(), {"budgets": torch.arange(D_SAE) % 40, "boundary": True}),
        ("threshold", Threshold(), {"theta": w.b_enc.abs() + 5, "band": 1.0}),
    ):
        found = encode_select(x, w.W_enc, w.b_enc, rule, backend=backend, **extra)
        tensors = {"values": found.code.values, "columns": found.code.columns, "boundary": found.boundary}
        tensors |= (
            {} if found.band is None else {"band": found.band.values, "band columns": found.band.columns}
        )
        tensors["mean"] = found.attribution_mean
        yield from ((f"{name} {key}", tensor) for key, tensor in tensors.items() if tensor is not None)


def every_result(backend: str) -> dict[str, Tensor]:
    """What each operator gives on one problem, and the weights after some steps."""
    weights, x, target = make_weights(), make(ROWS, D, seed=5), make(ROWS, D, seed=6)
    found = dict(selections(x, weights, backend))
    for name, rule, extra in (("token", PerToken(9), {}), ("ragged", Threshold(), {"theta": 14.0})):
        code = encode_select(x, weights.W_enc, weights.b_enc, rule, backend=backend, **extra).code
        found[f"{name} decode"] = decode(code, weights.W_dec, weights.b_dec, backend=backend)
        error, squares = decode_error(code, weights.W_dec, None, target, backend=backend)
        found |= {f"{name} error": error, f"{name} squares": squares}
        found[f"{name} products"] = pair_products(code, weights.W_dec, target, backend=backend)
        g = code_gradients(code, x, weights.W_dec, error, g_values=code.values * 0.1, backend=backend)
        found |= {f"{name} d{key}": getattr(g, key) for key in ("W_enc", "b_enc", "W_dec", "values")}
    for clip in (None, 0.5):
        for key, tensor in train(clip, x, target, backend).items():
            found[f"{key} after steps, clip {clip}"] = tensor
    return found


def train(clip: float | None, x: Tensor, target: Tensor, backend: str) -> dict[str, Tensor]:
    """Weights, moments and norms after three steps with a main and a spare code."""
    weights = make_weights()
    adam = SparseAdam(weights, AdamOptions(clip=clip), backend)
    norms = []
    for _ in range(3):
        centred = x - weights.b_dec
        code = encode_select(centred, weights.W_enc, weights.b_enc, PerToken(9), backend=backend).code
        error, _ = decode_error(code, weights.W_dec, weights.b_dec, target, backend=backend)
        spare = encode_select(
            centred, weights.W_enc, weights.b_enc, PerToken(4), columns=torch.arange(50), backend=backend
        ).code
        terms = [GradientTerm(code, centred, error / ROWS)]
        terms.append(GradientTerm(spare, centred, -error / ROWS, adds_b_dec=False))
        norms.append(adam.step(terms, 0.01))
    return weights.named() | adam.state_tensors() | {"norms": torch.stack(norms)}


def digest(found: dict[str, Tensor]) -> str:
    """One hash of all bits."""
    parts = (name.encode() + tensor.contiguous().numpy().tobytes() for name, tensor in found.items())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def expected(backend) -> dict[str, Tensor]:
    """On one thread; the second call, so that everything is compiled and all thread memory exists."""
    every_result(backend)
    return every_result(backend)


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_results_are_finite_and_many(expected):
    assert len(expected) > 50
    assert all(bool(tensor.isfinite().all()) and tensor.numel() for tensor in expected.values())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_threads(backend, expected, threads, count):
    torch.set_num_threads(count)
    assert_same_bits(every_result(backend), expected)
    assert torch.get_num_threads() == count


@pytest.mark.parametrize("value", [float("nan"), 3e38, -1.0, 0.0])
def test_whatever_is_left_in_the_threads_memory(backend, expected, value):
    assert tiles._memory.held
    for tensor in tiles._memory.held.values():
        tensor.fill_(value if tensor.is_floating_point() else 2**30)
    assert_same_bits(every_result(backend), expected)


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_whatever_is_in_fresh_memory(backend, expected, monkeypatch, value):
    def poisoned(make):
        def fresh(*args, **kwargs):
            out = make(*args, **kwargs)
            out.fill(value if out.dtype.kind == "f" else 2**30 if out.dtype.itemsize > 2 else 2**14)
            return out

        return fresh

    tiles._memory.held.clear()
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(
        True
    )  # torch fills what it hands out with NaN and the largest integers
    torch.utils.deterministic.fill_uninitialized_memory = True
    monkeypatch.setattr(np, "empty", poisoned(np.empty))
    monkeypatch.setattr(np, "empty_like", poisoned(np.empty_like))
    try:
        assert bool(torch.empty(3).isnan().all()) and not bool((np.empty(3) == 0).any())
        assert_same_bits(every_result(backend), expected)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.mark.parametrize("perturb", ["128", "1"])  # bytes 0x7f: large numbers; 0xfe: large negative ones
@pytest.mark.skipif(sys.platform != "linux", reason="glibc fills memory when told so by its environment")
def test_whatever_malloc_hands_out(backend, expected, perturb):
    """Also memory of the compiled loops themselves."""
    environment = {**os.environ, "MALLOC_PERTURB_": perturb, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, backend], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [7, 48])
def test_a_row_is_the_same_bits_in_any_batch(backend, threads, d, dtype):
    x, W_enc, b_enc = (make(*shape, seed=8).to(dtype) for shape in ((700, d), (D_SAE, d), (D_SAE,)))
    W_dec, scale = make(D_SAE, d, seed=9).to(dtype), b_enc.abs()
    cases = [(PerToken(8), {}), (PerToken(8), {"scale": scale}), (Threshold(), {"theta": 3.0 * d**0.5})]
    for rule, extra in cases:
        whole = encode_select(x, W_enc.t(), b_enc, rule, backend=backend, **extra).code
        x_hat = decode(whole, W_dec, backend=backend)
        _, squares = decode_error(whole, W_dec, None, x, backend=backend)
        for count, start, stop in ((1, 0, 1), (2, 5, 6), (1, 1, 257), (3, 255, 700), (2, 699, 700)):
            torch.set_num_threads(count)
            part = encode_select(x[start:stop], W_enc.t(), b_enc, rule, backend=backend, **extra).code
            same = whole.slice_rows(start, stop)
            assert torch.equal(part.values, same.values) and torch.equal(part.columns, same.columns)
            assert torch.equal(decode(part, W_dec, backend=backend), x_hat[start:stop])
            assert torch.equal(
                decode_error(part, W_dec, None, x[start:stop], backend=backend)[1], squares[start:stop]
            )


@pytest.mark.parametrize("count", [2, 3])
def test_rows_that_are_worth_a_dense_product_on_any_number_of_threads(backend, threads, count):
    w, x = make_weights(), make(ROWS, D, seed=5)
    code = encode_select(x, w.W_enc, w.b_enc, Threshold(), theta=2.0, backend=backend).code
    results = []
    for n in (1, count):
        torch.set_num_threads(n)
        x_hat = decode(code, w.W_dec, backend=backend)
        g = code_gradients(code, x, w.W_dec, x, backend=backend)
        results.append((x_hat, g.W_enc, g.b_enc, g.W_dec, g.values))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_row_is_the_same_bits_among_rows_with_another_mean():
    """Features that do not see what the rows have in common, so that products in bfloat16 say little."""
    common = make(1, 256, seed=10)
    W_enc = make(4096, 256, seed=11)
    W_enc -= W_enc @ common.t() @ common / common.square().sum()
    rows = 20 * common + make(64, 256, seed=12)
    alone = encode_select(rows, W_enc.t(), torch.zeros(4096), PerToken(16), backend="cpu").code
    mixed = encode_select(
        torch.cat([rows, -rows]), W_enc.t(), torch.zeros(4096), PerToken(16), backend="cpu"
    ).code
    assert torch.equal(mixed.values[:64], alone.values)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(digest(every_result(sys.argv[1])))
