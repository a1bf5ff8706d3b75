"""What the tests of the registered operators share."""

from __future__ import annotations

from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from saelab_kernels import torch_ops
from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Threshold
from saelab_kernels.torch_ops import Pairs

BUDGETS = torch.arange(12) % 4
THETA = torch.full((), 0.3, dtype=torch.float64)
ENCODERS = {
    "top_k": lambda *weights, **options: torch_ops.encode_top_k(*weights, 3, **options),
    "per_batch": lambda *weights, **options: torch_ops.encode_per_batch(*weights, 2.5, **options),
    "per_feature": lambda *weights, **options: torch_ops.encode_per_feature(*weights, BUDGETS, **options),
    "threshold": lambda *weights, **options: torch_ops.encode_threshold(*weights, THETA, **options),
}
RULES = {
    "top_k": (PerToken(3), {"boundary": True}),
    "per_batch": (PerBatch(2.5), {"boundary": True}),
    "per_feature": (PerFeature(), {"budgets": BUDGETS, "boundary": True}),
    "threshold": (Threshold(), {"theta": 0.3}),
}


def small(problem):
    """7 tokens of d 4, 12 features, d_out 5, float64. No score lies within 1e-4 of another or of a threshold."""
    p = problem(7, 4, 12, 5)
    scores = torch.cat([p.z.reshape(-1), torch.tensor([0.0, 0.3], dtype=torch.float64)]).sort().values
    assert float(scores.diff().min()) > 1e-4
    return p


def copies(*tensors):
    """In the same memory order, without a gradient."""
    return [t.detach().clone(memory_format=torch.preserve_format) for t in tensors]


def leaves(*tensors):
    """Copies that want a gradient."""
    return [t.requires_grad_() for t in copies(*tensors)]


def pairs_of(p, name, backend="torch", **options) -> Pairs:
    """The kept pairs of a problem by the rule `name`."""
    return ENCODERS[name](*p.weights, backend=backend, **options)


def counted(work) -> Counter[str]:
    """How often each operator ran."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    return Counter({event.key: event.count for event in profiler.key_averages()})
