"""All of our variants of the timed step are one computation: they have the losses of the dense step."""

import pytest
import torch

from saelab_kernels.bench.options import BenchOptions
from saelab_kernels.bench.own_steps import StepOptions, dense_step, sparse_step
from saelab_kernels.bench.own_worker import VARIANTS, step_options
from saelab_kernels.bench.peer_worker import Setup
from saelab_kernels.bench.problem import make_problem
from saelab_kernels.dispatch import available_backends

DEAD = torch.arange(0, 96, 4)


def losses(step, batches):
    return [float(step(x)) for x in batches * 2]


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize(
    "added", [{}, {"clip": 0.05}, {"dead": DEAD, "aux_k": 3}, {"clip": 0.05, "dead": DEAD}]
)
def test_the_sparse_step_has_the_losses_of_the_dense_one(backend, added):
    problem = make_problem(BenchOptions(d_in=12, d_sae=96, k=5, batch=64))
    batches = [x.double() for x in problem.batches]
    options = StepOptions(k=5, lr=3e-3, **added)
    ours = losses(sparse_step(problem.W_dec.double(), options, backend), batches)
    dense = losses(dense_step(problem.W_dec.double(), options), batches)
    assert ours == pytest.approx(dense, rel=1e-9)
    assert ours[3] < 0.99 * ours[0]  # the same batch again
    plain = losses(dense_step(problem.W_dec.double(), StepOptions(k=5, lr=3e-3)), batches)
    assert (dense == plain) == (not added)


def test_what_the_workers_run_are_these_steps():
    problem = make_problem(BenchOptions(d_in=12, d_sae=96, k=5, batch=64))
    setup = Setup(
        variant="",
        d_in=12,
        d_sae=96,
        k=5,
        batch=64,
        data="",
        device="cpu",
        threads=1,
        lr=3e-3,
        backend="torch",
        clip=0.05,
        aux_k=3,
        n_dead=10,
    )
    found = {}
    for name, make in VARIANTS.items():
        step = make(setup, problem.W_dec.clone())
        found[name] = [step.loss(step.run(x)) for x in problem.batches * 2]
    assert found["saelab"] == pytest.approx(found["dense"], rel=1e-5)
    assert found["dense-bf16"] == pytest.approx(found["dense"], rel=0.05)
    assert found["dense-bf16"] != found["dense"]
    for name in ("saelab-clip", "saelab-auxk"):
        assert found[name][0] == found["saelab"][0]
        assert found[name][-1] != found["saelab"][-1]
    dead = step_options(setup, aux=True).dead
    assert dead is not None
    assert len(dead.unique()) == 10
