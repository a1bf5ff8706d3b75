"""Blocks of work over threads, from one queue: a thread that the machine slows down simply takes fewer blocks.

Threads of Python, because what they run (compiled loops, matrix products) holds no lock of the interpreter, may be
called from any thread of a program at the same time, and survives a fork of the process: numba's own threads do
neither. Each worker's matrix products run on that worker alone.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_lock = threading.Lock()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
"""By process and number of threads: a forked child must not wait for threads that only its parent has."""


def run_blocks(task: Callable[[int], None], blocks: int) -> None:
    """Call `task(0)` to `task(blocks - 1)`, in any order, on as many threads as torch may use.

    The first exception of a task is raised here, after the others have ended.
    """
    threads = min(torch.get_num_threads(), blocks)
    if threads <= 1:
        for block in range(blocks):
            task(block)
        return
    queue = itertools.count()

    def work() -> None:
        with torch.no_grad():
            while (block := next(queue)) < blocks:
                task(block)

    pool = _pool(torch.get_num_threads())
    for running in [pool.submit(work) for _ in range(threads)]:
        running.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    key = (os.getpid(), threads)
    with _lock:
        if key not in _pools:
            _pools[key] = _start(threads)
        return _pools[key]


def _start(threads: int) -> ThreadPoolExecutor:
    started = threading.Barrier(threads + 1)

    def own_thread_alone() -> None:
        torch.get_num_threads()  # a thread takes over the latest setting at its first use, and must not do so later
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="saelab-kernels")
    for _ in range(threads):
        pool.submit(own_thread_alone)
    started.wait()
    # The setting is the calling thread's own, but new threads begin with the latest one anywhere.
    torch.set_num_threads(threads)
    return pool
