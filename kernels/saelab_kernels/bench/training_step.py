"""The whole training step: ours against its bound, a dense step and other libraries, in turn, each in a process."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from saelab_kernels.bench import peer_worker
from saelab_kernels.bench.bound import BOUND, BOUND_BF16, PARTS, PRODUCT
from saelab_kernels.bench.options import BenchError, BenchOptions
from saelab_kernels.bench.own_worker import VARIANTS as OWN
from saelab_kernels.bench.problem import Problem
from saelab_kernels.bench.rounds import Rounds, VariantFailed, clocks, interleave
from saelab_kernels.bench.variants import PEERS, all_variants, is_float32, own_variants, peer_variants
from saelab_kernels.bench.worker_process import WorkerProcess, worker_environment

NEEDED = (*PARTS, "saelab", "saelab-clip", "saelab-auxk")
"""Without these there is nothing to compare; any other variant may fail."""
PEERS_NOT_ASKED_FOR = "not asked for; --peer-python names an environment that has them"
MIB = 2**20


def time_steps(
    options: BenchOptions, problem: Problem, backend: str, threads: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Times, ratios, losses and peak memory of every variant; what could not run is listed with the reason.

    Each variant, the parts of the bound too, runs in a process of its own with the same number of threads.

    Raises:
        BenchError: The bound or one of our own steps failed, so that there is nothing to compare.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        data = Path(folder) / "batches.f32"
        problem.write(data)
        workers, missing = _start(options, data, backend, threads, running, say)
        _refuse_without_ours(missing, backend)
        variants = {name: worker.step for name, worker in workers.items()}
        rounds = interleave(variants, options.rounds, len(problem.batches), say=say)
        missing |= rounds.failed
        _refuse_without_ours(missing, backend)
        memory = _memory(workers, rounds, missing)
    versions = {name: worker.versions for name, worker in workers.items() if name in rounds.samples}
    return {
        "variants": {name: _record(name, rounds, options.device, memory) for name in rounds.samples},
        "peers": _peers(rounds, own_variants(options.device, backend), options.device, memory),
        "auxk_over_product": rounds.added("saelab-auxk", "saelab", [PRODUCT], options.device),
        "missing": missing,
        "versions": versions,
    }


def _refuse_without_ours(missing: dict[str, str], backend: str) -> None:
    for name in NEEDED:
        if name in missing:
            raise BenchError(f"the step {name} with backend {backend} failed: {missing[name]}")


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
    peers = options.peer_python
    missing = {"other libraries": PEERS_NOT_ASKED_FOR} if peers is None else {}
    for name in all_variants(options.device, backend, peers=peers is not None):
        if name in OWN:
            command = [sys.executable, "-m", "saelab_kernels.bench.own_worker"]
        else:
            command = [str(peers), str(Path(peer_worker.__file__).resolve())]
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


def _peers(rounds: Rounds, ours: tuple[str, ...], device: str, memory: dict[str, float]) -> dict[str, Any]:
    """For each library as it is by default, at its best in float32 and at its best: its time over each of ours.

    Against each of ours, since some libraries clip and some do not, and some of ours multiply in bfloat16. Memory
    is compared with `saelab`.
    """
    against = [name for name in ours if name in rounds.samples and name != "saelab-auxk"]
    found = {}
    for library in PEERS:
        shown = _shown(library, rounds, device)
        if shown:
            found[library] = {
                which: {
                    "variant": name,
                    "over": {own: rounds.ratios([name], [own], device) for own in against},
                    "peak_over_saelab": _quotient(memory.get(name), memory.get("saelab")),
                }
                for which, name in shown.items()
            }
    return found


def _shown(library: str, rounds: Rounds, device: str) -> dict[str, str]:
    """The variants of a library that are compared, by what they stand for."""
    clock = clocks(device)[0]
    timed = [name for name in peer_variants(library, device) if name in rounds.samples]
    timed.sort(key=lambda name: rounds.times(name)[f"{clock}_ms"]["median"])
    shown = {"default": PEERS[library][0]} if PEERS[library][0] in timed else {}
    exact = [name for name in timed if is_float32(name, device)]
    return {
        **shown,
        **({"best float32": exact[0]} if exact else {}),
        **({"best": timed[0]} if timed else {}),
    }


def _quotient(theirs: float | None, ours: float | None) -> float | None:
    """Their peak memory over ours; None where one is unknown, or too small to be seen."""
    return theirs / ours if theirs is not None and ours else None
