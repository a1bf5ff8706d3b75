"""Threads of the backend "cpu": several callers, forks, failures, and the setting of torch that they leave alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from saelab_kernels.backends.cpu import workers
from saelab_kernels.backends.cpu.workers import run_blocks
from saelab_kernels.rules import PerBatch, PerToken
from saelab_kernels.select import encode_select


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Two threads, and back to what it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def select(problem):
    """A selection of several blocks of rows; the values that it keeps."""
    p = problem(700, 16, 1100, dtype=torch.float32)
    return lambda rule=PerToken(8): encode_select(*p.weights, rule, backend="cpu").code.values  # noqa: B008


def test_every_block_once_and_in_more_than_one_thread():
    done, names, both = [], set(), threading.Barrier(2)

    def task(index):
        if index < 2:
            both.wait(30)  # passes only where two threads are here at the same time
        done.append(index)
        names.add(threading.get_ident())

    run_blocks(task, 50)
    assert sorted(done) == list(range(50))
    assert len(names) == 2 and threading.get_ident() not in names


@pytest.mark.parametrize("blocks", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_blocks(blocks, count):
    torch.set_num_threads(count)
    done = []
    run_blocks(done.append, blocks)
    assert sorted(done) == list(range(blocks))


def test_a_failing_block_is_raised_when_nothing_runs_any_more():
    running, started, failing = [], threading.Event(), threading.Event()

    def task(index):
        if index == 0:
            started.wait(30)
            failing.set()
            raise ValueError("block 0 failed")
        running.append(index)
        started.set()
        failing.wait(30)
        sum(range(3_000_000))  # the other thread is at work for a while after block 0 has failed
        running.remove(index)

    with pytest.raises(ValueError, match="block 0 failed"):
        run_blocks(task, 4)
    assert running == []


def test_the_pool_works_after_failures(select):
    expected = select()

    def task(index):
        raise KeyError(index)

    for _ in range(3):
        with pytest.raises(KeyError):
            run_blocks(task, 5)
    assert torch.equal(select(), expected)


def test_another_number_of_threads_at_any_time(select):
    expected = select()
    for count in (3, 1, 2, 4, 2):
        torch.set_num_threads(count)
        assert torch.equal(select(), expected)
        assert torch.get_num_threads() == count


def test_torchs_setting_is_left_alone(select):
    for count in (2, 3):
        torch.set_num_threads(count)
        select()
        assert torch.get_num_threads() == count
        with ThreadPoolExecutor(1) as new:
            assert new.submit(torch.get_num_threads).result() == count


def test_products_of_a_worker_run_on_that_worker_alone():
    found = []
    run_blocks(lambda _: found.append(torch.get_num_threads()), 8)
    assert found == [1] * 8


def test_several_callers_at_once(select):
    expected = {rule: select(rule) for rule in (PerToken(8), PerToken(300), PerBatch(8))}
    start = threading.Barrier(4)

    def caller(number):
        start.wait(30)
        rules = list(expected)[number % 3 :] + list(expected)[: number % 3]
        return all(torch.equal(select(rule), expected[rule]) for _ in range(5) for rule in rules)

    with ThreadPoolExecutor(4) as callers:
        assert list(callers.map(caller, range(4))) == [True] * 4


def test_a_forked_child_works_and_so_does_its_parent(select):
    expected = select()
    child = os.fork()
    if child == 0:
        same = False
        try:
            same = torch.equal(select(), expected) and torch.equal(select(PerBatch(8)), select(PerBatch(8)))
        finally:
            os._exit(0 if same else 1)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0), "the child hung or found other numbers"
    assert torch.equal(select(), expected)


def test_inside_and_outside_of_inference_mode(select):
    expected = select()
    for count in (1, 2):
        torch.set_num_threads(count)
        with ThreadPoolExecutor(1) as fresh:  # a thread with no memory yet

            def inside():
                with torch.inference_mode():
                    select()
                return select()

            assert torch.equal(fresh.submit(inside).result(), expected)


def test_weights_that_require_gradients_in_workers(problem):
    p = problem(700, 16, 1100, dtype=torch.float32)
    expected = encode_select(*p.weights, PerToken(8), backend="cpu").code.values
    leaves = [tensor.detach().requires_grad_() for tensor in p.weights]
    assert torch.equal(encode_select(*leaves, PerToken(8), backend="cpu").code.values, expected)


def test_a_stop_while_waiting_ends_the_blocks_that_run_before_it_is_raised(monkeypatch):
    """Ctrl-C: nothing may write into the weights after the caller has gone on."""
    running, release = threading.Event(), threading.Event()
    done: list[int] = []
    inner = workers.wait

    def interrupted_once(futures):
        monkeypatch.setattr(workers, "wait", inner)
        running.wait()
        release.set()
        raise KeyboardInterrupt

    def task(block):
        running.set()
        release.wait()
        done.append(block)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(workers, "wait", interrupted_once)
        with pytest.raises(KeyboardInterrupt):
            workers.run_blocks(task, 100)
        seen = len(done)
        assert 1 <= seen < 100
        workers.run_blocks(lambda block: None, 4)
        assert len(done) == seen
    finally:
        torch.set_num_threads(threads)
