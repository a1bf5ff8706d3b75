"""`python -m saelab_kernels.bench.own_worker`: our steps, the dense one and the bound, in a process like the peers'."""

from __future__ import annotations

from collections.abc import Callable

import torch

from saelab_kernels.bench.bound import PARTS
from saelab_kernels.bench.own_steps import SparseStep, StepFunction, StepOptions, captured_step, dense_step
from saelab_kernels.bench.peer_worker import MakeStep, Setup, Step, serve
from saelab_kernels.bench.variants import FLOAT32_BACKEND
from saelab_kernels.shapes import Tensor


def step_options(setup: Setup, *, clip: bool = False, aux: bool = False) -> StepOptions:
    """What a variant does, on the device of its setup."""
    dead = None
    if aux:
        order = torch.randperm(setup.d_sae, generator=torch.Generator().manual_seed(1))
        dead = order[: setup.n_dead].sort().values.to(setup.device)
    return StepOptions(
        k=setup.k, lr=setup.lr, clip=setup.clip if clip else None, dead=dead, aux_k=setup.aux_k
    )


def _sparse(*, float32: bool = False, clip: bool = False, aux: bool = False) -> MakeStep:
    def make(setup: Setup, W_dec: Tensor) -> StepFunction:
        assert setup.backend is not None
        backend = FLOAT32_BACKEND[setup.backend] if float32 else setup.backend
        return SparseStep(W_dec, step_options(setup, clip=clip, aux=aux), backend)

    return _variant(make)


def _captured(*, clip: bool = False) -> MakeStep:
    return _variant(lambda setup, W: captured_step(W, step_options(setup, clip=clip), setup.batch))


def _dense(autocast: torch.dtype | None = None) -> MakeStep:
    return _variant(lambda setup, W: dense_step(W, step_options(setup), autocast))


def _bound(part: str) -> MakeStep:
    """A part of the bound on a batch of its own, so that nothing but the part is timed."""

    def make(setup: Setup, W_dec: Tensor) -> Step:
        call = PARTS[part](W_dec, torch.randn(setup.batch, setup.d_in, device=setup.device))
        return Step(lambda x: call(), None)

    return make


def _variant(make: Callable[[Setup, Tensor], StepFunction]) -> MakeStep:
    return lambda setup, W_dec: Step(make(setup, W_dec), float)


VARIANTS: dict[str, MakeStep] = {
    **{part: _bound(part) for part in PARTS},
    "saelab": _sparse(),
    "saelab-clip": _sparse(clip=True),
    "saelab-float32": _sparse(float32=True),
    "saelab-float32-clip": _sparse(float32=True, clip=True),
    "saelab-graph": _captured(),
    "saelab-graph-clip": _captured(clip=True),
    "saelab-auxk": _sparse(aux=True),
    "dense": _dense(),
    "dense-bf16": _dense(torch.bfloat16),
}
PACKAGES = ("torch", "numba", "triton")


if __name__ == "__main__":
    serve(VARIANTS, PACKAGES)
