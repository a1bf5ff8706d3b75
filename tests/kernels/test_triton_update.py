"""Decode, gradients and the optimiser step of backend "triton": each part in a process that suits it."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from saelab_kernels.adam import SparseAdam
from saelab_kernels.adam_state import AdamOptions, Weights
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.decode import decode_error
from saelab_kernels.rules import PerToken
from saelab_kernels.select import encode_select

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


def run_tests(*arguments: str, **variables: str) -> None:
    """pytest in a process of its own: a wrong load in the interpreter ends the process."""
    environment = {
        name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"
    } | variables
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"


@needs_triton
def test_the_interpreter_gives_what_the_reference_gives():
    run_tests(f"{HERE}/triton_update_checks.py", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("test_kernel_adam.py", "rows_have_norm_one or saved_moments or refused"),
        ("test_kernel_gradients.py", "dead_features or spare_capacity or parts or empty_codes or replaced"),
    ],
)
def test_it_passes_the_tests_of_every_backend(file, names):
    run_tests(f"{HERE}/{file}", "-k", f"triton and ({names})", TRITON_INTERPRET="1")


@needs_triton
def test_launches_need_no_numbers_and_compile_for_a_gpu(tmp_path):
    run_tests(f"{HERE}/triton_update_compile.py", TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_does_what_the_step_does(problem):
    from saelab_kernels.backends.triton.graph import CapturedStep

    p = problem(64, 32, 256, dtype=torch.float32)
    parts = (p.W_enc, p.b_enc, torch.nn.functional.normalize(p.W_dec), p.target[0])
    batches = [torch.randn(64, 32, generator=torch.Generator().manual_seed(seed)).cuda() for seed in range(4)]
    rates = [torch.tensor(0.01 / (i + 1), device="cuda") for i in range(4)]
    outcomes = []
    for captured in (False, True):
        weights = Weights(*(part.clone(memory_format=torch.preserve_format).cuda() for part in parts))
        adam = SparseAdam(weights, AdamOptions(clip=1.0))
        step = partial(take_step, weights, adam)
        if captured:
            state = [*weights.named().values(), *adam.state_tensors().values()]
            step = CapturedStep(step, (batches[0], rates[0]), state)
        losses = [torch.stack(step(*inputs)).clone() for inputs in zip(batches, rates, strict=True)]
        outcomes.append([*losses, *weights.named().values(), *adam.state_tensors().values()])
    for one, other in zip(*outcomes, strict=True):
        assert torch.equal(one, other)


def take_step(weights, adam, batch, lr):
    """The loss and the norm of the gradient."""
    x = batch - weights.b_dec
    code = encode_select(x, weights.W_enc, weights.b_enc, PerToken(8)).code
    error, squares = decode_error(code, weights.W_dec, weights.b_dec, batch)
    return squares.sum(), adam.step([GradientTerm(code, x, 2 * error)], lr)
