"""`python -m saelab_kernels.bench`: the sparse training step beside a dense one, round by round in one process.

What is timed is forward and backward of one TopK reconstruction step, optimisers left out on both
sides. The main numbers are ratios of CPU time (all threads) within one run, since machines differ
and are noisy; each round runs every variant once, and the best round of each counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch

from saelab_kernels.decode import decode
from saelab_kernels.buffers import GradientBuffers
from saelab_kernels.gradients import code_gradients
from saelab_kernels.layout import feature_major_like
from saelab_kernels.rules import PerToken
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Tensor


def main(arguments: list[str] | None = None) -> None:
    """Print one JSON line: shapes, milliseconds of CPU time, and ratios to one encoder product."""
    parser = argparse.ArgumentParser(prog="python -m saelab_kernels.bench", description=__doc__)
    parser.add_argument("--d-in", type=int, default=256)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backend", default="torch")
    options = parser.parse_args(arguments)
    shape = (options.d_in, options.d_sae, options.k, options.tokens)
    sparse, dense = make_steps(*shape, options.backend)
    x, W_enc = torch.randn(options.tokens, options.d_in), torch.randn(options.d_sae, options.d_in).T
    variants = {"encoder product": lambda: x @ W_enc, "sparse step": sparse, "dense step": dense}
    best = {name: float("inf") for name in variants}
    for variant in variants.values():  # first calls allocate and choose algorithms
        variant()
    for _ in range(options.rounds):
        for name, variant in variants.items():
            started = time.process_time()
            variant()
            best[name] = min(best[name], time.process_time() - started)
    product = best["encoder product"]
    report = {
        "d_in": options.d_in,
        "d_sae": options.d_sae,
        "k": options.k,
        "tokens": options.tokens,
        "backend": options.backend,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_ms": {name: round(1e3 * seconds, 2) for name, seconds in best.items()},
        "over_product": {name: round(seconds / product, 3) for name, seconds in best.items()},
        "dense_over_sparse": round(best["dense step"] / best["sparse step"], 3),
    }
    sys.stdout.write(json.dumps(report) + "\n")


Gradients = tuple[Tensor, Tensor, Tensor]


def make_steps(
    d_in: int, d_sae: int, k: int, tokens: int, backend: str
) -> tuple[Callable[[], Gradients], Callable[[], Gradients]]:
    """Return the sparse and the dense step on equal data; each returns its gradients of W_enc, b_enc, W_dec."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, d_in, generator=generator)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    W_enc, b_enc = feature_major_like(W_dec.T), torch.zeros(d_sae)
    buffers = GradientBuffers.for_shapes(d_in, d_sae, d_in)
    leaves = [tensor.clone().requires_grad_() for tensor in (W_enc, b_enc, W_dec)]

    def sparse() -> Gradients:
        code = encode_select(x, W_enc, b_enc, PerToken(k), backend=backend).code
        error = decode(code, W_dec, backend=backend) - x
        found = code_gradients(code, x, W_dec, 2 * error / tokens, buffers=buffers, backend=backend)
        return found.W_enc, found.b_enc, found.W_dec

    def dense() -> Gradients:
        u = torch.relu(x @ leaves[0] + leaves[1])
        top = u.topk(k, dim=1)
        f = torch.zeros_like(u).scatter(1, top.indices, top.values)
        loss = (f @ leaves[2] - x).square().sum() / tokens
        first, second, third = torch.autograd.grad(loss, leaves)
        return first, second, third

    return sparse, dense


if __name__ == "__main__":
    main()
