"""Which backend runs: by the device, the variable, the argument, and with torch alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from saelab_kernels import dispatch, torch_ops

TORCH_ALONE = """
import sys
for name in ("numba", "triton"):
    sys.modules[name] = None
import torch
from saelab_kernels import dispatch, torch_ops
assert dispatch.available_backends() == ("torch", "reference")
assert dispatch.choose_backend("cpu") == dispatch.choose_backend("cuda") == "torch"
x, W_enc, b_enc, W_dec = (torch.randn(*s).requires_grad_() for s in ((9, 4), (4, 8), (8,), (8, 4)))
pairs = torch_ops.encode_top_k(x, W_enc, b_enc, 2)
torch_ops.decode(pairs, W_dec).square().sum().backward()
assert W_enc.grad.any() and W_dec.grad.any() and x.grad.any()
print("runs")
"""


def test_neither_numba_nor_triton_is_needed():
    environment = {name: value for name, value in os.environ.items() if name != dispatch.OVERRIDE}
    done = subprocess.run(
        [sys.executable, "-c", TORCH_ALONE], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "runs", done.stderr[-3000:]


@pytest.mark.parametrize(
    ("device", "installed", "name"),
    [
        ("cuda", {"triton", "cpu"}, "triton"),
        ("cuda", {"cpu"}, "torch"),
        ("cpu", {"triton", "cpu"}, "cpu"),
        ("cpu", {"triton"}, "torch"),
        ("mps", {"triton", "cpu"}, "torch"),
    ],
)
def test_the_backend_is_chosen_by_the_device(monkeypatch, device, installed, name):
    monkeypatch.delenv(dispatch.OVERRIDE, raising=False)
    monkeypatch.setattr(dispatch, "_runs_here", lambda name: name in installed | {"torch", "reference"})
    assert dispatch.choose_backend(device) == dispatch.choose_backend(torch.device(device)) == name
    monkeypatch.setenv(dispatch.OVERRIDE, "reference")
    assert dispatch.choose_backend(device) == "reference"


def test_the_variable_and_the_argument_override_the_choice(problem, monkeypatch):
    p = problem(50, 32, 64, dtype=torch.float32)
    found = {
        name: torch_ops.encode_top_k(*p.weights, 8, backend=name).values for name in ("torch", "reference")
    }
    assert not torch.equal(found["torch"], found["reference"])  # float64 inside: other roundings
    for name, other in (("torch", "reference"), ("reference", "torch")):
        monkeypatch.setenv(dispatch.OVERRIDE, name)
        assert torch.equal(torch_ops.encode_top_k(*p.weights, 8).values, found[name])
        assert torch.equal(torch_ops.encode_top_k(*p.weights, 8, backend=other).values, found[other])
    monkeypatch.setenv(dispatch.OVERRIDE, "metal")
    with pytest.raises(ValueError, match="SAELAB_KERNELS=metal: available here: torch"):
        torch_ops.encode_top_k(*p.weights, 8)
    with pytest.raises(ValueError, match="unknown backend 'metal'"):
        torch_ops.encode_top_k(*p.weights, 8, backend="metal")
