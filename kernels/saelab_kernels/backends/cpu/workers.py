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
from concurrent.futures import ThreadPoolExecutor, wait

import torch

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}
"""By number of threads."""


def run_blocks(task: Callable[[int], None], blocks: int) -> None:
    """Call `task(0)` to `task(blocks - 1)`, in any order, on as many threads as torch may use.

    An exception of a task is raised here, after the others have ended; blocks that nobody had begun are left out.
    """
    threads = min(torch.get_num_threads(), blocks)
    if threads <= 1:
        for block in range(blocks):
            task(block)
        return
    queue = itertools.count()
    failed = threading.Event()

    def work() -> None:
        with torch.no_grad():
            while not failed.is_set() and (block := next(queue)) < blocks:
                try:
                    task(block)
                except BaseException:
                    failed.set()
                    raise

    pool = _pool(torch.get_num_threads())
    running = [pool.submit(work) for _ in range(threads)]
    try:
        wait(running)  # nothing may still write into memory that the caller takes back
    except BaseException:  # Ctrl-C: the blocks that run are ended, the others left
        failed.set()
        wait(running)
        raise
    for one in running:
        one.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    with _lock:
        if threads not in _pools:
            _pools[threads] = _start(threads)
        return _pools[threads]


def _forget_pools() -> None:
    """In a forked child: the threads are its parent's, and so may be whoever held the lock."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)


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
