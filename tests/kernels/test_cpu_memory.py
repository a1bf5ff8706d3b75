"""What the backend "cpu" allocates: numpy's memory by tracemalloc, torch's by its profiler, and what threads keep."""

from __future__ import annotations

import tracemalloc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights
from saelab_kernels.backends.cpu import tiles
from saelab_kernels.buffers import GradientBuffers, GradientTerm
from saelab_kernels.decode import decode, decode_error
from saelab_kernels.gradients import code_gradients, pair_products
from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Threshold
from saelab_kernels.select import encode_select

ROWS, D, D_SAE, K = 4096, 64, 4096, 16
DENSE, GATHERED = 4 * ROWS * D_SAE, 4 * ROWS * K * D
MB = 2**20

each = pytest.mark.parametrize("backend", ["cpu", "cpu-float32"])


def largest(work) -> float:
    """Bytes of the largest torch allocation in `work`, or of all numpy ones at their peak, if that is more."""
    work()  # threads' memory and compiled loops stay
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler.kineto_results
    sizes = [event.nbytes() for event in results.events() if event.name() == "[memory]"]
    tracemalloc.start()
    try:
        work()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return max([peak, *sizes])


def test_control_dense_work_is_seen():
    x = torch.ones(ROWS, D_SAE)
    assert largest(lambda: torch.relu(x)) >= DENSE
    assert largest(lambda: (torch.ones(1), x.numpy() + 1)) >= DENSE


@each
@pytest.mark.parametrize(
    "rule", [PerToken(K), PerToken(8 * K), PerBatch(K), PerFeature(), Threshold()], ids=str
)
def test_selection(problem, backend, rule):
    p = problem(ROWS, D, D_SAE, dtype=torch.float32)
    extra = {"budgets": torch.full((D_SAE,), K)} if isinstance(rule, PerFeature) else {}
    extra |= {"theta": 24.0} if isinstance(rule, Threshold) else {"boundary": True}
    assert largest(lambda: encode_select(*p.weights, rule, backend=backend, **extra)) < DENSE / 2


@each
def test_selection_of_very_different_budgets(problem, backend):
    """One feature that most tokens use, as frequencies of features have it, must not cost its tokens for all."""
    p = problem(ROWS, D, D_SAE, dtype=torch.float32)
    budgets = torch.full((D_SAE,), 2)
    budgets[0] = ROWS
    work = largest(lambda: encode_select(*p.weights, PerFeature(), budgets=budgets, backend=backend))
    assert work < DENSE / 3


@each
def test_a_quota_among_equal_scores(problem, backend):
    """All pairs tie: a thread holds those of one tile (2 MB of scores) some times over, not those of all tiles."""
    p = problem(ROWS, D, D_SAE, dtype=torch.float32)
    same = (p.x * 0, p.W_enc, torch.ones(D_SAE))
    assert (
        largest(lambda: encode_select(*same, PerBatch(K), backend=backend))
        < 24 * 4 * tiles.TILE_ROWS * tiles.TILE_COLUMNS
    )


@each
@pytest.mark.parametrize("ragged", [False, True])
def test_products_and_gradients(problem, backend, ragged):
    p = problem(ROWS, D, D_SAE, dtype=torch.float32)
    code = encode_select(*p.weights, PerToken(K), backend=backend).code
    code = code.ragged() if ragged else code
    buffers = GradientBuffers.for_shapes(D, D_SAE, D)
    results = 4 * ROWS * D + MB // 4
    assert largest(lambda: decode(code, p.W_dec, p.target[0], backend=backend)) <= results
    assert largest(lambda: decode_error(code, p.W_dec, None, p.target, backend=backend)) <= results
    assert largest(lambda: pair_products(code, p.W_dec, p.target, backend=backend)) <= results
    work = largest(lambda: code_gradients(code, p.x, p.W_dec, p.target, buffers=buffers, backend=backend))
    assert work < GATHERED / 4  # some 40 bytes for each entry; an entry's row would be 256


@each
@pytest.mark.parametrize("clip", [None, 1.0])
def test_optimiser_step_has_no_gradient_matrix(problem, backend, clip):
    p = problem(512, 256, D_SAE, dtype=torch.float32)
    weights = Weights(
        p.W_enc.clone(memory_format=torch.preserve_format), p.b_enc, p.W_dec, p.target[0].clone()
    )
    adam = SparseAdam(weights, AdamOptions(clip=clip), backend)
    code = encode_select(*p.weights, PerToken(K), backend=backend).code
    work = largest(lambda: adam.step([GradientTerm(code, p.x, p.target)], 1e-3))
    assert work < 4 * D_SAE * 256 / 4 and work < 4 * 512 * K * 256 / 4


@each
@pytest.mark.parametrize("k", [K, D_SAE])
def test_threads_keep_a_tile_and_its_lists(problem, backend, k):
    """A tile of products, its inputs twice (as they are and in bfloat16), and lists that are no longer than a row."""
    p = problem(600, D, D_SAE, dtype=torch.float32)
    tiles._memory.held.clear()
    encode_select(*p.weights, PerToken(k), backend=backend)
    rows = 512
    lists = 8 * rows * min(6 * (k + 1) + 96, D_SAE + 1)
    held = sum(tensor.numel() * tensor.element_size() for tensor in tiles._memory.held.values())
    assert 0 < held <= 4 * rows * (tiles.TILE_COLUMNS + 2 * D + 8) + lists
