"""How the step and its parts grow with the number of features, k and the batch, one of them at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights
from saelab_kernels.bench.bound import BOUND, PARTS, PRODUCT, Call
from saelab_kernels.bench.options import BenchOptions
from saelab_kernels.bench.own_steps import SparseStep, StepOptions
from saelab_kernels.bench.problem import Problem, make_problem
from saelab_kernels.bench.rounds import interleave, local
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.decode import decode_error
from saelab_kernels.rules import PerToken
from saelab_kernels.select import encode_select

FACTORS = {"d_sae": (0.25, 0.5, 1, 2, 4), "k": (0.25, 0.5, 1, 2, 4), "batch": (0.25, 0.5, 1, 2)}
"""Of the sizes that the run was asked for."""


def time_scaling(options: BenchOptions, backend: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One record a point: `axis`, `value` and, for product, select, decode error, adam and step, times and ratios."""
    records = []
    for axis, factors in FACTORS.items():
        middle = getattr(options, axis)
        for value in sorted({max(1, round(factor * middle)) for factor in factors}):
            sized = options.sized(**{axis: value})
            if sized.k > sized.d_sae:
                continue
            say(f"scaling: {axis} {value}")
            records.append({"axis": axis, "value": value, "variants": _time_point(sized, backend)})
    return records


def _time_point(options: BenchOptions, backend: str) -> dict[str, Any]:
    problem = make_problem(options, n_batches=1)
    calls = _parts(options, problem, backend)
    variants = {name: local(call, options.device) for name, call in calls.items()}
    rounds = interleave(variants, options.rounds, 1)
    return {
        name: {
            **rounds.times(name),
            "over_product": rounds.ratios([name], [PRODUCT], options.device),
            "over_bound": rounds.ratios([name], BOUND, options.device),
        }
        for name in rounds.samples
    }


def _parts(options: BenchOptions, problem: Problem, backend: str) -> dict[str, Call]:
    """The bound, the three parts of a step on fixed arguments, and the step itself."""
    device, rule = options.device, PerToken(options.k)
    x, W_dec = problem.batches[0].to(device), problem.W_dec.to(device)
    weights = Weights(
        W_dec.clone().t(), W_dec.new_zeros(options.d_sae), W_dec.clone(), W_dec.new_zeros(options.d_in)
    )
    code = encode_select(x, weights.W_enc, weights.b_enc, rule, backend=backend).code
    error, _ = decode_error(code, W_dec, weights.b_dec, x, backend)
    term = GradientTerm(code, x, error * (2 / options.batch))
    adam = SparseAdam(weights, AdamOptions(), backend)
    step = SparseStep(W_dec.clone(), StepOptions(k=options.k, lr=options.lr), backend)
    return {
        **{name: part(W_dec, x) for name, part in PARTS.items()},
        "select": lambda: encode_select(x, weights.W_enc, weights.b_enc, rule, backend=backend),
        "decode error": lambda: decode_error(code, weights.W_dec, weights.b_dec, x, backend),
        "adam": lambda: adam.step([term], options.lr),
        "step": lambda: step(x),
    }
