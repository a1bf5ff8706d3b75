"""Training by the backends from one seed: the same losses to rounding at first, and no more apart than one rounding."""

import importlib.util
import sys
from pathlib import Path

import pytest

from saelab.activations.source import StoreSource

SCRIPT = Path(__file__).parents[2] / "scripts" / "loss_curves.py"
STEPS = 100


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("loss_curves", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["loss_curves"] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["loss_curves"]


@pytest.mark.parametrize("backend", ["cpu", "cpu-float32", "reference"])
def test_backends_train_alike(script, make_config, store, backend):
    config, source = make_config(steps=STEPS, lr=1e-3, width=256), StoreSource(store)
    torch_curve = script.train_curve(config, source, "torch", k=4)
    found = script.compare(torch_curve, script.train_curve(config, source, backend, k=4))
    control = script.compare(torch_curve, script.train_curve(config, source, "torch", k=4, nudged=True))
    assert torch_curve.loss[-1] < 0.7 * torch_curve.loss[0]
    assert found.largest[10] < 1e-6
    assert found.largest[STEPS] < 10 * max(control.largest[STEPS], 1e-6)
    assert found.fvu < 10 * max(control.fvu, 1e-6)
    assert found.common_pairs > 0.99


def test_one_backend_gives_one_curve(script, make_config, store):
    a, b = (
        script.train_curve(make_config(steps=30, width=256), StoreSource(store), "cpu", k=4) for _ in range(2)
    )
    assert a.loss == b.loss and a.fvu == b.fvu
    assert script.compare(a, b).equal_codes == 1.0
