from __future__ import annotations

import pytest

from saelab_kernels.dispatch import OVERRIDE
from saelab_kernels.footprint import training_footprint


def test_fused_backends_hold_three_copies_and_torch_four(monkeypatch):
    held = {}
    for name in ("torch", "cpu", "cpu-float32"):
        monkeypatch.setenv(OVERRIDE, name)
        held[name] = training_footprint(16, 64, 100, "cpu").held
    parameters = 2 * 16 * 64 + 64 + 16
    assert held == {"torch": 16 * parameters, "cpu": 12 * parameters, "cpu-float32": 12 * parameters}


@pytest.mark.parametrize(
    ("shape", "k", "aux_k", "measured_mib"),
    [
        ((256, 8192, 2048), 32, 0, 97),
        ((256, 8192, 2048), 32, 128, 114),
        ((256, 4096, 4096), 32, 128, 128),
        ((768, 16384, 2048), 32, 384, 432),
        ((768, 8192, 8192), 64, 384, 654),
    ],
)
def test_the_formula_is_not_below_peaks_that_were_measured(monkeypatch, shape, k, aux_k, measured_mib):
    """Peaks of processes that did some steps, above their imports, with "cpu" on one thread."""
    monkeypatch.setenv(OVERRIDE, "cpu")
    found = training_footprint(*shape, "cpu", k=k, aux_k=aux_k)
    assert measured_mib < (found.held + found.working) / 2**20 < 1.6 * measured_mib
