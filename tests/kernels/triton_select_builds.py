"""What the Triton selection launches, without a GPU: it compiles, and `PerToken` never reads from the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton_compile import compile_all, recorded_launches

from saelab_kernels.backends.triton.select import triton_select
from saelab_kernels.backends.triton.tiles import SelectPlan
from saelab_kernels.request import Attribution, SelectRequest
from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Rule, Threshold

PLAN = SelectPlan(height=4)


def request(rule: Rule, dtype: torch.dtype = torch.float32, **given) -> SelectRequest:
    rows, d_in, d_sae = 7, 24, 200
    options = dict.fromkeys(("budgets", "theta", "scale", "attribution", "columns"))
    if isinstance(rule, PerFeature):
        options["budgets"] = torch.ones(d_sae, dtype=torch.int64)
    if isinstance(rule, Threshold):
        options["theta"] = torch.tensor(0.5, dtype=dtype)
    return SelectRequest(
        x=torch.randn(rows, d_in, dtype=dtype),
        W_enc=torch.randn(d_sae, d_in, dtype=dtype).t(),
        b_enc=torch.randn(d_sae, dtype=dtype),
        rule=rule,
        **options
        | {"band": 0.1 if isinstance(rule, Threshold) else 0.0}
        | {"boundary": not isinstance(rule, Threshold)}
        | given,
    )


def attribution(mode: str, dtype: torch.dtype = torch.float32) -> Attribution:
    g, W_dec = torch.randn(7, 9, dtype=dtype), torch.randn(200, 9, dtype=dtype)
    return Attribution(g=g, W_dec=W_dec, beta=0.7, mode=mode)


def check_every_kernel_compiles_for_hopper() -> None:
    with recorded_launches() as launches:
        triton_select(request(PerToken(6), scale=torch.ones(200)), PLAN)
        for rule in (PerBatch(3), PerFeature(), Threshold()):
            triton_select(request(rule, attribution=attribution("mul")), PLAN)
        triton_select(request(PerToken(6), attribution=attribution("add")), PLAN)
        triton_select(request(PerToken(6), torch.bfloat16), PLAN)
        triton_select(request(PerToken(6), torch.float64), PLAN)
    kernels = {launch.kernel.__name__ for launch in launches}
    assert kernels == {
        "filter_kernel", "finish_kernel", "round_features_kernel", "round_tokens_kernel", "rescore_kernel",
        "redo_kernel", "copy_rows_kernel", "digits_kernel", "threshold_kernel",
    }, kernels  # fmt: skip
    compile_all(launches)


class _Waits(Exception):
    """The host would wait for a device here."""


class _Guard(TorchDispatchMode):
    """Refuses the operators that read from a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique"):
            raise _Waits(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_is_read() -> Iterator[None]:
    """Also refuses `tolist`, which is no operator on the processor."""
    with recorded_launches() as launches, _Guard(), mock.patch("torch.Tensor.tolist", side_effect=_Waits):
        yield
    assert launches


def check_per_token_reads_nothing_from_the_device() -> None:
    budgets, columns = torch.ones(7, dtype=torch.int64), torch.arange(150)
    with nothing_is_read():
        triton_select(request(PerToken(6)), PLAN)
        triton_select(request(PerToken(6), scale=torch.ones(200), budgets=budgets, columns=columns), PLAN)
        triton_select(request(PerToken(6), attribution=attribution("add")), PLAN)
        triton_select(request(PerToken(6), torch.float64), PLAN)


def check_the_guard_sees_the_rules_that_read() -> None:
    for rule in (PerBatch(3), PerFeature(), Threshold()):
        try:
            with nothing_is_read():
                triton_select(request(rule), PLAN)
        except _Waits:
            continue
        raise AssertionError(f"{rule} reads numbers from the device, but nothing was refused")
