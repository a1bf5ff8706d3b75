"""Every operator alone: its time, and its share of what the memory and the multipliers of this machine can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights
from saelab_kernels.bench import traffic
from saelab_kernels.bench.bound import COPY, PARTS, PRODUCT, PRODUCT_BF16, TRAFFIC, copy_call
from saelab_kernels.bench.options import BenchOptions
from saelab_kernels.bench.problem import Problem
from saelab_kernels.bench.rounds import Rounds, clocks, interleave, local
from saelab_kernels.bench.traffic import Sizes
from saelab_kernels.bench.variants import FLOAT32_BACKEND
from saelab_kernels.buffers import GradientBuffers, GradientTerm
from saelab_kernels.code import SparseCode
from saelab_kernels.decode import decode, decode_error
from saelab_kernels.gradients import code_gradients
from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Rule, Threshold
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True, slots=True)
class Work:
    """What a call has to do."""

    n_bytes: int
    """That it cannot avoid moving; see `traffic`."""
    flops: int
    """Of its matrix product and its gathers, two a multiply-add."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator on fixed arguments."""

    call: Callable[[], object]
    work: Work


def time_operators(options: BenchOptions, problem: Problem, backend: str) -> dict[str, Any]:
    """A record for each operator: times, bytes, and shares of the copy and of the products in the same rounds."""
    device = options.device
    operators = _selections(options, problem, backend) | _after_selection(options, problem, backend)
    copy, copied = copy_call(options.copy_mib, device)
    x, W_dec = problem.batches[0].to(device), problem.W_dec.to(device)
    calls: dict[str, Callable[[], object]] = {COPY: copy}
    calls |= {name: part(W_dec, x) for name, part in PARTS.items()}
    calls |= {name: operator.call for name, operator in operators.items()}
    rounds = interleave({name: local(call, device) for name, call in calls.items()}, options.rounds, 1)
    product = traffic.product_flops(options.batch, options.d_in, options.d_sae)
    work = {
        COPY: Work(copied, 0),
        PRODUCT: Work(0, product),
        PRODUCT_BF16: Work(0, product),
        TRAFFIC: Work(traffic.matrix_traffic(options.d_in, options.d_sae), 0),
        **{name: operator.work for name, operator in operators.items()},
    }
    return {name: _record(name, work, rounds, device) for name in calls}


def _record(name: str, works: dict[str, Work], rounds: Rounds, device: str) -> dict[str, Any]:
    """Shares: (bytes of the operator / its time) / (bytes of the copy / its time), and so for operations."""
    times, work = rounds.times(name), works[name]
    seconds = times[f"{clocks(device)[0]}_ms"]["median"] / 1e3
    record: dict[str, Any] = {**times, "bytes": work.n_bytes, "flops": work.flops}
    record["gb_per_s"] = work.n_bytes / seconds / 1e9
    record["gflop_per_s"] = work.flops / seconds / 1e9
    shares = (
        ("share_of_bandwidth", COPY, work.n_bytes / works[COPY].n_bytes),
        ("share_of_product", PRODUCT, work.flops / works[PRODUCT].flops),
        ("share_of_product_bf16", PRODUCT_BF16, work.flops / works[PRODUCT_BF16].flops),
    )
    for label, anchor, amount in shares:
        measured = rounds.ratios([anchor], [name], device)
        record[label] = {clock: amount * ratio for clock, ratio in measured.items()}
    record["over_product"] = rounds.ratios([name], [PRODUCT], device)
    return record


def sizes_of(code: SparseCode, options: BenchOptions) -> Sizes:
    """The sizes that the bytes of a call on this code follow from."""
    exact = code.ragged()
    touched = int((exact.firing_counts() > 0).sum())
    return Sizes(
        batch=options.batch,
        d_in=options.d_in,
        d_sae=options.d_sae,
        pairs=exact.values.numel(),
        touched=touched,
    )


def _selections(options: BenchOptions, problem: Problem, backend: str) -> dict[str, Operator]:
    """Encode and select under each of the four rules, with about k pairs a token under each."""
    device = options.device
    x, W_dec = problem.batches[0].to(device), problem.W_dec.to(device)
    W_enc, b_enc = W_dec.clone().t(), W_dec.new_zeros(options.d_sae)
    boundary = encode_select(x, W_enc, b_enc, PerBatch(options.k), boundary=True, backend=backend).boundary
    assert boundary is not None
    each = max(1, round(options.k * options.batch / options.d_sae))
    budgets = torch.full((options.d_sae,), each, dtype=torch.int64, device=device)

    def select(rule: Rule, backend: str = backend, **given: Any) -> Callable[[], SparseCode]:
        return lambda: encode_select(x, W_enc, b_enc, rule, backend=backend, **given).code

    calls = {"select per token": select(PerToken(options.k))}
    if backend in FLOAT32_BACKEND:
        calls["select per token, float32"] = select(PerToken(options.k), FLOAT32_BACKEND[backend])
    calls |= {
        "select per batch": select(PerBatch(options.k)),
        "select per feature": select(PerFeature(), budgets=budgets),
        "select above threshold": select(Threshold(), theta=boundary),
    }
    flops = traffic.product_flops(options.batch, options.d_in, options.d_sae)
    return {
        name: Operator(call, Work(traffic.select_bytes(sizes_of(call(), options)), flops))
        for name, call in calls.items()
    }


def _after_selection(options: BenchOptions, problem: Problem, backend: str) -> dict[str, Operator]:
    """Decode, its error, gradients and the optimiser step on one TopK code; AuxK on the error of it."""
    device, d_in, d_sae = options.device, options.d_in, options.d_sae
    x, W_dec = problem.batches[0].to(device), problem.W_dec.to(device)
    W_enc, b_enc, b_dec = W_dec.clone().t(), W_dec.new_zeros(d_sae), W_dec.new_zeros(d_in)
    code = encode_select(x, W_enc, b_enc, PerToken(options.k), backend=backend).code
    error, _ = decode_error(code, W_dec, b_dec, x, backend)
    term = GradientTerm(code, x, error * (2 / options.batch))
    buffers = GradientBuffers.for_shapes(d_in, d_sae, d_in, device=device)
    n = sizes_of(code, options)
    gathers = 2 * n.pairs * d_in
    operators = {
        "decode": Operator(
            lambda: decode(code, W_dec, b_dec, backend), Work(traffic.decode_bytes(n), gathers)
        ),
        "decode error": Operator(
            lambda: decode_error(code, W_dec, b_dec, x, backend),
            Work(traffic.decode_error_bytes(n), gathers),
        ),
        "gradients": Operator(
            lambda: code_gradients(code, x, W_dec, term.g_out, buffers=buffers, backend=backend),
            Work(traffic.gradient_bytes(n), 3 * gathers),
        ),
    }
    for name, clip in (("adam", None), ("adam, clipped", options.clip)):
        weights = Weights(W_enc.t().clone().t(), b_enc.clone(), W_dec.clone(), b_dec.clone())
        adam = SparseAdam(weights, AdamOptions(clip=clip), backend)
        operators[name] = Operator(
            lambda adam=adam: adam.step([term], options.lr),
            Work(traffic.adam_bytes(n, clip=clip is not None), (3 if clip is None else 6) * gathers),
        )
    operators["auxk"] = _auxk(options, x, -error, Weights(W_enc, b_enc, W_dec, b_dec), backend)
    return operators


def _auxk(
    options: BenchOptions,
    x: Float[Tensor, "batch d_in"],
    missing: Float[Tensor, "batch d_in"],
    weights: Weights,
    backend: str,
) -> Operator:
    """Forward of AuxK: dead columns ranked, and the error of their reconstruction of what is missing."""
    order = torch.randperm(options.d_sae, generator=torch.Generator().manual_seed(1))
    dead = order[: options.n_dead].sort().values.to(options.device)
    rule = PerToken(options.aux_k)

    def select() -> SparseCode:
        W_enc, b_enc = weights.W_enc, weights.b_enc
        return encode_select(x, W_enc, b_enc, rule, columns=dead, backend=backend).code

    n = sizes_of(select(), options)
    products = traffic.product_flops(options.batch, options.d_in, options.n_dead)
    return Operator(
        lambda: decode_error(select(), weights.W_dec, None, missing, backend),
        Work(
            traffic.select_bytes(n, options.n_dead) + traffic.decode_error_bytes(n),
            products + 2 * n.pairs * options.d_in,
        ),
    )
