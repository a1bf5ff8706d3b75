"""All of our variants of the timed step are one computation: they have the losses of the dense step."""

import dataclasses

import pytest
import torch

from saelab_kernels.bench.options import BenchOptions
from saelab_kernels.bench.own_steps import SparseStep, StepOptions, dense_step
from saelab_kernels.bench.own_worker import VARIANTS, step_options
from saelab_kernels.bench.peer_worker import Setup
from saelab_kernels.bench.problem import make_problem
from saelab_kernels.bench.variants import own_variants
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
    ours = losses(SparseStep(problem.W_dec.double(), options, backend), batches)
    dense = losses(dense_step(problem.W_dec.double(), options), batches)
    assert ours == pytest.approx(dense, rel=1e-9)
    assert ours[3] < 0.99 * ours[0]  # the same batch again
    plain = losses(dense_step(problem.W_dec.double(), StepOptions(k=5, lr=3e-3)), batches)
    assert (dense == plain) == (not added)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_step_with_its_state_put_back_does_the_same_again(clip):
    problem = make_problem(BenchOptions(d_in=12, d_sae=96, k=5, batch=64))
    step = SparseStep(problem.W_dec, StepOptions(k=5, lr=3e-3, clip=clip), "torch")
    step(problem.batches[0])
    saved = [tensor.clone() for tensor in step.state()]
    first = losses(step, problem.batches)
    for tensor, old in zip(step.state(), saved, strict=True):
        assert not torch.equal(tensor, old)
        tensor.copy_(old)
    assert losses(step, problem.batches) == first


def setup(device: str, backend: str) -> Setup:
    return Setup(
        variant="",
        d_in=12,
        d_sae=96,
        k=5,
        batch=64,
        data="",
        device=device,
        threads=1,
        lr=3e-3,
        backend=backend,
        clip=0.05,
        aux_k=3,
        n_dead=10,
    )


def run_worker(name: str, device: str, backend: str) -> list[float]:
    problem = make_problem(BenchOptions(d_in=12, d_sae=96, k=5, batch=64))
    step = VARIANTS[name](setup(device, backend), problem.W_dec.to(device))
    assert step.loss is not None
    return [step.loss(step.run(x.to(device))) for x in problem.batches * 2]


def test_what_the_workers_run_are_these_steps():
    names = {*own_variants("cpu", "torch"), "dense", "dense-bf16"}
    found = {name: run_worker(name, "cpu", "torch") for name in names}
    assert found["saelab"] == pytest.approx(found["dense"], rel=1e-5)
    assert found["dense-bf16"] == pytest.approx(found["dense"], rel=0.05)
    assert found["dense-bf16"] != found["dense"]
    for name in ("saelab-clip", "saelab-auxk"):
        assert found[name][0] == found["saelab"][0]
        assert found[name][-1] != found["saelab"][-1]
    dead = step_options(setup("cpu", "torch"), aux=True).dead
    assert dead is not None
    assert len(dead.unique()) == 10


def test_the_variants_in_float32_use_the_backend_that_selects_so(monkeypatch):
    used = []

    def noted(W_dec, options, backend):
        used.append((backend, options.clip))
        return lambda x: x.sum()

    monkeypatch.setattr("saelab_kernels.bench.own_worker.SparseStep", noted)
    for name in ("saelab", "saelab-clip", "saelab-float32", "saelab-float32-clip"):
        VARIANTS[name](setup("cpu", "cpu"), torch.empty(96, 12))
    assert used == [("cpu", None), ("cpu", 0.05), ("cpu-float32", None), ("cpu-float32", 0.05)]


def test_the_first_tiny_step_keeps_as_large_a_share_as_the_others():
    real = dataclasses.replace(setup("cpu", "cpu"), d_sae=8192, k=256, n_dead=819, aux_k=128)
    tiny = real.tiny()
    assert (tiny.d_sae, tiny.k, tiny.n_dead, tiny.aux_k) == (64, 2, 6, 1)
    assert dataclasses.replace(real, d_sae=4, k=1, n_dead=1, aux_k=1, batch=2).tiny().batch == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["saelab", "saelab-clip"])
def test_a_captured_step_has_the_losses_of_the_plain_one(name):
    graph = run_worker(name.replace("saelab", "saelab-graph"), "cuda", "triton")
    assert graph == run_worker(name, "cuda", "triton")
