"""Annotated shapes are checked in every test, and the kernels run without jaxtyping too."""

from __future__ import annotations

import subprocess
import sys

import pytest
from jaxtyping import TypeCheckError

from saelab_kernels.rules import PerToken
from saelab_kernels.select import encode_select


def test_tests_run_with_annotations_checked(problem):
    p = problem(4, 3, 5)
    with pytest.raises(TypeCheckError, match="parameter 'b_enc'"):
        encode_select(p.x, p.W_enc, p.b_enc[:4], PerToken(2))


BARE = """
import sys
for name in ("jaxtyping", "numpy", "einops", "safetensors"):
    sys.modules[name] = None
import torch
from saelab_kernels import decode, gradients, rules, select
x, W_enc, b_enc, W_dec = torch.randn(9, 4), torch.randn(4, 8), torch.randn(8), torch.randn(8, 3)
code = select.encode_select(x, W_enc, b_enc, rules.PerToken(2)).code
gradients.code_gradients(code, x, W_dec, decode.decode(code, W_dec))
print("runs")
"""


def test_torch_alone_is_enough():
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True)
    assert done.stdout.strip() == "runs", done.stderr[-2000:]
