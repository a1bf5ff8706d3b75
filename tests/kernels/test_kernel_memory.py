"""The promise that no dense tensor is made, checked at the allocator, with the dense step as a control."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from saelab_kernels.backends.stock_tiles import TILE_ROWS_CPU
from saelab_kernels.buffers import GradientBuffers
from saelab_kernels.decode import decode
from saelab_kernels.gradients import code_gradients
from saelab_kernels.request import Attribution
from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Threshold
from saelab_kernels.select import encode_select

ROWS, D, D_SAE, K = 1024, 64, 1024, 16
TILE = TILE_ROWS_CPU * D_SAE


def largest_allocation(work) -> float:
    """Elements (float32) of the largest single allocation inside `work`, torch's internal ones included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler.kineto_results
    sizes = [event.nbytes() for event in results.events() if event.name() == "[memory]"]
    assert sizes, "the profiler reported no allocation: the check would pass on anything"
    return max(sizes) / 4


def test_control_dense_work_is_seen(problem):
    p = problem(ROWS, D, D_SAE, dtype=torch.float32)
    assert largest_allocation(lambda: torch.relu(p.z)) >= ROWS * D_SAE


@pytest.mark.parametrize(
    "rule", [PerToken(K), PerToken(4 * K), PerBatch(K), PerFeature(), Threshold()], ids=str
)
def test_selection_holds_no_more_than_a_tile(problem, rule):
    p = problem(ROWS, D, D_SAE, dtype=torch.float32)
    extra = {"budgets": torch.full((D_SAE,), K)} if isinstance(rule, PerFeature) else {}
    extra |= {"theta": 12.0} if isinstance(rule, Threshold) else {}
    assert largest_allocation(lambda: encode_select(*p.weights, rule, **extra, backend="torch")) <= TILE


def test_attribution_holds_no_more_than_a_tile(problem):
    p = problem(ROWS, D, D_SAE, dtype=torch.float32)
    attribution = Attribution(g=p.target, W_dec=p.W_dec, beta=0.3)
    assert (
        largest_allocation(
            lambda: encode_select(*p.weights, PerToken(K), attribution=attribution, backend="torch")
        )
        <= TILE
    )


def test_restricted_selection_costs_its_columns(problem):
    p = problem(ROWS, D, D_SAE, dtype=torch.float32)
    dead = torch.arange(0, D_SAE, 16)
    work = largest_allocation(lambda: encode_select(*p.weights, PerToken(K), columns=dead, backend="torch"))
    assert work <= TILE_ROWS_CPU * max(len(dead), D)


def test_decode_and_gradients_hold_no_dense_tensor_and_no_gathered_rows(problem):
    p = problem(ROWS, D, D_SAE, dtype=torch.float32)
    code = encode_select(*p.weights, PerToken(K), backend="torch").code
    buffers = GradientBuffers.for_shapes(D, D_SAE, D)
    assert largest_allocation(lambda: decode(code, p.W_dec, backend="torch")) <= ROWS * D
    work = largest_allocation(
        lambda: code_gradients(code, p.x, p.W_dec, p.target, buffers=buffers, backend="torch")
    )
    assert work <= 2 * ROWS * K + 2 * D_SAE  # int64 per entry
