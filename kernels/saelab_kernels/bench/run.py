"""A whole run: measure what was asked for, keep it, draw it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from saelab_kernels.bench.figure import draw, require_plotly
from saelab_kernels.bench.machine import describe_machine, describe_versions, now
from saelab_kernels.bench.operators import time_operators
from saelab_kernels.bench.options import BenchError, BenchOptions
from saelab_kernels.bench.problem import make_problem
from saelab_kernels.bench.scaling import time_scaling
from saelab_kernels.bench.table import headline, table
from saelab_kernels.bench.training_step import time_steps
from saelab_kernels.dispatch import available_backends, choose_backend

FORMAT = 1


def say_on_stderr(line: str) -> None:
    """Show progress."""
    sys.stderr.write(f"bench: {line}\n")
    sys.stderr.flush()


def bench(options: BenchOptions) -> tuple[dict[str, Any], str]:
    """Measure, write the files that were asked for and print the table on standard error.

    Returns:
        The report, fit for JSON, and its main findings as a few lines.

    Raises:
        BenchError: Options, device, backend or peers that cannot be used here.
    """
    report = measure(options, say_on_stderr)
    sys.stderr.write(table(report) + "\n")
    if options.out is not None:
        _write_whole(options.out, json.dumps(report, allow_nan=False, indent=1) + "\n")
    if options.figure is not None:
        draw(report, options.figure)
    return report, headline(report)


def measure(options: BenchOptions, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The report of a run (see `bench`)."""
    backend = _check(options)
    before = torch.get_num_threads()
    threads = before if options.threads is None else options.threads
    torch.set_num_threads(threads)
    try:
        report: dict[str, Any] = {
            "format": FORMAT,
            "date": now(),
            "machine": describe_machine(options.device),
            "versions": describe_versions(),
            "options": {key: str(v) if isinstance(v, Path) else v for key, v in asdict(options).items()},
            "backend": backend,
            "threads": threads,
        }
        problem = make_problem(options)
        if options.part in ("all", "operators"):
            say("operators")
            report["operators"] = time_operators(options, problem, backend)
        if options.part in ("all", "step"):
            report["step"] = time_steps(options, problem, backend, threads, say)
        if options.scaling:
            report["scaling"] = time_scaling(options, backend, say)
    finally:
        torch.set_num_threads(before)
    report["load_at_end"] = describe_machine(options.device)["load"]
    return report


def _check(options: BenchOptions) -> str:
    """Refuse what cannot run before anything is measured; return the backend's name."""
    options.check()
    if options.device not in ("cpu", "cuda"):
        raise BenchError(f"--device {options.device}: cpu or cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise BenchError("--device cuda: torch finds no CUDA device here")
    peers = options.peer_python
    if peers is not None and not (peers.is_file() and os.access(peers, os.X_OK)):
        raise BenchError(f"--peer-python {peers}: no program there; give the python of an environment")
    if options.figure is not None:
        require_plotly(options.figure)
    try:
        backend = choose_backend(options.device) if options.backend is None else options.backend
    except ValueError as error:
        raise BenchError(str(error)) from error
    if backend not in available_backends():
        raise BenchError(f"--backend {backend}: available here: {', '.join(available_backends())}")
    return backend


def _write_whole(path: Path, text: str) -> None:
    """Write beside and rename, so that the file is never half there."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text)
    beside.replace(path)
