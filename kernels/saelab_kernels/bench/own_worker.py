"""`python -m saelab_kernels.bench.own_worker`: our step and the dense one, in a process like the peers'."""

from __future__ import annotations

from collections.abc import Callable

import torch

from saelab_kernels.bench.own_steps import StepFunction, StepOptions, dense_step, sparse_step
from saelab_kernels.bench.peer_worker import MakeStep, Setup, Step, serve
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


def _sparse(*, clip: bool = False, aux: bool = False) -> MakeStep:
    return _variant(lambda setup, W: sparse_step(W, step_options(setup, clip=clip, aux=aux), setup.backend))


def _dense(autocast: torch.dtype | None = None) -> MakeStep:
    return _variant(lambda setup, W: dense_step(W, step_options(setup), autocast))


def _variant(make: Callable[[Setup, Tensor], StepFunction]) -> MakeStep:
    return lambda setup, W_dec: Step(make(setup, W_dec), float)


VARIANTS: dict[str, MakeStep] = {
    "saelab": _sparse(),
    "saelab-clip": _sparse(clip=True),
    "saelab-auxk": _sparse(aux=True),
    "dense": _dense(),
    "dense-bf16": _dense(torch.bfloat16),
}
PACKAGES = ("torch", "numba", "triton")


if __name__ == "__main__":
    serve(VARIANTS, PACKAGES)
