"""Workers of the benchmark: the protocol, and everything that can go wrong on the other side."""

import subprocess
import sys

import pytest
import torch

from saelab_kernels.bench import peer_worker
from saelab_kernels.bench.options import BenchOptions
from saelab_kernels.bench.peer_worker import Setup, timed
from saelab_kernels.bench.problem import make_problem
from saelab_kernels.bench.rounds import VariantFailed
from saelab_kernels.bench.worker_process import WorkerProcess, worker_environment

OPTIONS = BenchOptions(d_in=8, d_sae=32, k=4, batch=16)

SERVED = """
import os, sys, torch
from saelab_kernels.bench.peer_worker import Step, serve

def sums(setup, W_dec):
    print("a library's greeting")
    return Step(lambda x: x, lambda x: float(x.sum() + W_dec.sum()))

def large(setup, W_dec):
    n = 2**24 if setup.d_in == 8 else 1  # the tiny first step makes nothing
    return Step(lambda x: torch.ones(n), lambda x: 1.0)

def dying(setup, W_dec):
    def run(x):
        if setup.d_in == 8:
            print("cannot allocate", file=sys.stderr, flush=True)
            os._exit(3)
        return x
    return Step(run, lambda x: 1.0)

def failing(setup, W_dec):
    raise RuntimeError("no such   option")

variants = {
    "sums": sums, "large": large, "dying": dying, "failing": failing,
    "infinite": lambda setup, W_dec: Step(lambda x: x, lambda x: float("nan")),
}
serve(variants, ("torch", "no-such-package"))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "batches.f32"
    make_problem(OPTIONS).write(path)
    return path


@pytest.fixture
def start(data):
    def start(program, variant="sums", **options):
        setup = Setup(
            variant=variant,
            d_in=8,
            d_sae=32,
            k=4,
            batch=16,
            data=str(data),
            device="cpu",
            threads=1,
            lr=1e-4,
            backend="torch",
            clip=1.0,
            aux_k=2,
            n_dead=3,
        )
        return WorkerProcess([sys.executable, *program], setup, worker_environment(1), **options)

    return start


def test_a_worker_gets_the_same_weights_and_batches_and_tells_its_time(start):
    problem = make_problem(OPTIONS)
    with start(["-c", SERVED]) as worker:
        assert worker.versions["torch"] == torch.__version__
        assert set(worker.versions) == {"python", "torch"}
        for batch in (2, 0, 1):
            sample = worker.step(batch)
            expected = float(problem.batches[batch].sum() + problem.W_dec.sum())
            assert sample.loss == pytest.approx(expected, rel=1e-5)
            assert 0 <= sample.cpu < 1 > sample.wall > 0


def test_memory_is_the_peak_of_the_steps_alone(start):
    with start(["-c", SERVED], "large") as large, start(["-c", SERVED], "sums") as small:
        large.step(0)
        small.step(0)
        # 64 MiB, as far as the system's count of pages goes, which lags behind by some tens of them.
        assert 63 <= large.memory() / 2**20 < 80
        assert small.memory() / 2**20 < 8


@pytest.mark.parametrize(
    ("program", "variant", "words"),
    [
        (["-c", SERVED], "failing", r"^RuntimeError: no such option \(<string>, line \d+\)$"),
        (["-c", SERVED], "infinite", "ArithmeticError: infinite: the loss is nan"),
        (["-c", SERVED], "dying", "it ended with code 3: cannot allocate"),
        (["-c", SERVED], "unknown", "KeyError: 'unknown'"),
        (["-c", "raise SystemExit('no interpreter for you')"], "sums", "code 1: no interpreter for you"),
        (
            ["-c", "import sys; sys.stdin.readline(); print('hello')"],
            "sums",
            "its reply is not JSON: b'hello'",
        ),
    ],
)
def test_what_goes_wrong_in_a_worker_is_one_line_here(start, program, variant, words):
    def use():
        with start(program, variant) as worker:
            worker.step(0)

    with pytest.raises(VariantFailed, match=words):
        use()


def test_a_worker_that_says_nothing_is_given_up(start):
    with pytest.raises(VariantFailed, match="no reply in 0 s"):
        start(["-c", "import sys; sys.stdin.read()"], patience=0.2)


def test_a_worker_that_closes_its_output_and_stays_is_given_up(start, monkeypatch):
    monkeypatch.setattr("saelab_kernels.bench.worker_process.GRACE_SECONDS", 0.1)
    with pytest.raises(VariantFailed, match="it closed its output without ending"):
        start(["-c", "import os, sys; sys.stdin.readline(); os.close(1); sys.stdin.read()"])


def test_a_library_that_is_not_there_is_named(start):
    for variant, package in (("saelens", "sae_lens"), ("sparsify", "sparsify")):
        with pytest.raises(VariantFailed, match=f"ModuleNotFoundError: No module named '{package}'"):
            start([peer_worker.__file__], variant)


def test_the_script_for_other_environments_imports_nothing_of_ours(tmp_path):
    script = (
        "import runpy, sys; sys.path.insert(0, 'x'); sys.stdin = open('/dev/null')\n"
        f"runpy.run_path({peer_worker.__file__!r}, run_name='__main__')\n"
        "print([name for name in sys.modules if name.startswith('saelab')], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stderr.splitlines()[-1:] == ["[] False"], done


def test_a_call_is_timed_with_all_of_its_threads():
    result, wall, cpu = timed(lambda: sum(range(10**6)), "cpu")
    assert result == 10**6 * (10**6 - 1) // 2
    assert 0 < 0.2 * cpu < wall
