"""The whole training step: ours against its bound, a dense step and other libraries, in turn, each in a process."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from saelab_kernels.bench import peer_worker
from saelab_kernels.bench.bound import BOUND, BOUND_BF16, PRODUCT, bound_variants
from saelab_kernels.bench.options import BenchError, BenchOptions
from saelab_kernels.bench.own_worker import VARIANTS as OWN
from saelab_kernels.bench.problem import Problem
from saelab_kernels.bench.rounds import Rounds, Variant, VariantFailed, clocks, interleave
from saelab_kernels.bench.worker_process import WorkerProcess, worker_environment

PEERS = {
    "saelens": ("saelens", "saelens-bf16", "saelens-sparse"),
    "dictionary-learning": ("dictionary-learning", "dictionary-learning-bf16"),
    "sparsify": ("sparsify", "sparsify-bf16"),
    "dense": ("dense", "dense-bf16"),
}
"""Variants of each library, as it is by default first; on CUDA sparsify is bfloat16 by default."""
OURS = ("saelab", "saelab-clip", "saelab-auxk")
MIB = 2**20


def time_steps(
    options: BenchOptions, problem: Problem, backend: str, threads: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Times, ratios, losses and peak memory of every variant; what could not run is listed with the reason.

    Raises:
        BenchError: One of our own steps failed, so that there is nothing to compare.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        data = Path(folder) / "batches.f32"
        problem.write(data)
        workers, missing = _start(options, data, backend, threads, running, say)
        variants: dict[str, Variant] = bound_variants(problem.W_dec, problem.batches, options.device)
        variants |= {name: worker.step for name, worker in workers.items()}
        rounds = interleave(variants, options.rounds, len(problem.batches), say=say)
        missing |= rounds.failed
        memory = _memory(workers, rounds, missing)
    for name in OURS:
        if name in missing:
            raise BenchError(f"the step {name} with backend {backend} failed: {missing[name]}")
    versions = {name: worker.versions for name, worker in workers.items() if name in rounds.samples}
    return {
        "variants": {name: _record(name, rounds, options.device, memory) for name in rounds.samples},
        "peers": _peers(rounds, options.device, memory),
        "auxk_over_product": _added_by_auxk(rounds, options.device),
        "missing": missing,
        "versions": versions,
    }


def wanted(options: BenchOptions) -> list[str]:
    """The variants besides the bound, ours first."""
    names = [*OURS, *(name for group in PEERS.values() for name in group)]
    return [name for name in names if options.device == "cpu" or name != "sparsify-bf16"]


def _start(
    options: BenchOptions,
    data: Path,
    backend: str,
    threads: int,
    running: ExitStack,
    say: Callable[[str], None],
) -> tuple[dict[str, WorkerProcess], dict[str, str]]:
    """Start a worker for every variant, one after the other; the second part says why some are missing."""
    workers: dict[str, WorkerProcess] = {}
    missing: dict[str, str] = {}
    for name in wanted(options):
        if name in OWN:
            command = [sys.executable, "-m", "saelab_kernels.bench.own_worker"]
        elif options.peer_python is None:
            missing[name] = "not asked for; --peer-python names an environment that has it"
            continue
        else:
            command = [str(options.peer_python), str(Path(peer_worker.__file__).resolve())]
        setup = peer_worker.Setup(
            variant=name,
            d_in=options.d_in,
            d_sae=options.d_sae,
            k=options.k,
            batch=options.batch,
            data=str(data),
            device=options.device,
            threads=threads,
            lr=options.lr,
            backend=backend,
            clip=options.clip,
            aux_k=options.aux_k,
            n_dead=options.n_dead,
        )
        say(f"starting {name}")
        try:
            workers[name] = running.enter_context(WorkerProcess(command, setup, worker_environment(threads)))
        except VariantFailed as failure:
            missing[name] = str(failure)
    return workers, missing


def _memory(workers: dict[str, WorkerProcess], rounds: Rounds, missing: dict[str, str]) -> dict[str, float]:
    memory = {}
    for name, worker in workers.items():
        if name in rounds.samples:
            try:
                memory[name] = worker.memory() / MIB
            except VariantFailed as failure:
                missing[f"memory of {name}"] = str(failure)
    return memory


def _record(name: str, rounds: Rounds, device: str, memory: dict[str, float]) -> dict[str, Any]:
    record: dict[str, Any] = rounds.times(name)
    record["over_product"] = rounds.ratios([name], [PRODUCT], device)
    record["over_bound"] = rounds.ratios([name], BOUND, device)
    record["over_bound_bf16"] = rounds.ratios([name], BOUND_BF16, device)
    samples = rounds.warm_up[name] + rounds.samples[name]
    losses = [sample.loss for sample in samples if sample.loss is not None]
    if losses:
        record["losses"] = losses
    if name in memory:
        record["peak_mib"] = memory[name]
    return record


def _peers(rounds: Rounds, device: str, memory: dict[str, float]) -> dict[str, Any]:
    """For each library: how many times our step's time its default and its fastest variant take, and our memory.

    Against our step with and without clipping, since some libraries clip and some do not.
    """
    clock, found = clocks(device)[0], {}
    for library, variants in PEERS.items():
        timed = [name for name in variants if name in rounds.samples]
        if not timed:
            continue
        best = min(timed, key=lambda name: rounds.times(name)[f"{clock}_ms"]["median"])
        shown = {**({"default": variants[0]} if variants[0] in timed else {}), "best": best}
        found[library] = {
            which: {
                "variant": name,
                "over_saelab": rounds.ratios([name], ["saelab"], device),
                "over_saelab_clip": rounds.ratios([name], ["saelab-clip"], device),
                "peak_over_saelab": _quotient(memory.get(name), memory.get("saelab")),
            }
            for which, name in shown.items()
        }
    return found


def _quotient(theirs: float | None, ours: float | None) -> float | None:
    """Their peak memory over ours; None where one is unknown, or too small to be seen."""
    return theirs / ours if theirs is not None and ours else None


def _added_by_auxk(rounds: Rounds, device: str) -> dict[str, float]:
    """What AuxK adds to a step, in encoder products: the difference of the medians of both ratios."""
    whole, without = (rounds.ratios([name], [PRODUCT], device) for name in ("saelab-auxk", "saelab"))
    return {clock: whole[clock] - without[clock] for clock in whole}
