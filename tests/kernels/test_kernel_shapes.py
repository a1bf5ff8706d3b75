"""Annotated shapes are true: the operators run under jaxtyping and beartype, which refuse a wrong one."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
from jaxtyping import install_import_hook
with install_import_hook("saelab_kernels", "beartype.beartype"):
    from saelab_kernels import code, decode, gradients, rules, select
    from saelab_kernels.backends import reference, stock
import torch
x, W_enc, b_enc, W_dec = torch.randn(9, 4), torch.randn(4, 8), torch.randn(8), torch.randn(8, 3)
budgets = torch.arange(8) % 3
for backend in ("torch", "reference"):
    for rule, extra in (
        (rules.PerToken(2), {}),
        (rules.PerBatch(1.5), {"boundary": True}),
        (rules.PerFeature(), {"budgets": budgets, "boundary": True}),
        (rules.Threshold(), {"theta": 0.1, "band": 0.2}),
        (rules.PerToken(2), {"columns": torch.tensor([1, 5]), "scale": b_enc.abs()}),
    ):
        c = select.encode_select(x, W_enc, b_enc, rule, backend=backend, **extra).code
        x_hat = decode.decode(c, W_dec, backend=backend)
        gradients.code_gradients(c, x, W_dec, x_hat, backend=backend)
        c.dense(), c.csr(), c.coo(), c.l0(), c.firing_counts(), c.feature_major(), code.SparseCode.cat([c, c])
try:
    select.encode_select(x, W_enc, b_enc[:7], rules.PerToken(2))
except Exception as error:
    assert "TypeCheckError" in type(error).__name__, error
    print("refused")
"""


def test_annotations_hold_at_run_time():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "refused"


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
