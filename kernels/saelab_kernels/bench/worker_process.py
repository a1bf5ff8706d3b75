"""The other side of a worker: start it, ask it for a step, end it; whatever goes wrong there is an error here."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from saelab_kernels.bench.peer_worker import Setup
from saelab_kernels.bench.rounds import Sample, VariantFailed

PATIENCE_SECONDS, GRACE_SECONDS = 900.0, 10.0
QUIET = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
OWN_ROOT = Path(__file__).parents[2]


def worker_environment(threads: int) -> dict[str, str]:
    """The environment of every worker: one number of threads, which sleep while others work."""
    count = str(threads)
    paths = [str(OWN_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **os.environ,
        **QUIET,
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "NUMBA_NUM_THREADS": count,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


class WorkerProcess:
    """A process that does one variant's steps; use it as a context.

    Args:
        command: Program and arguments; it speaks the protocol of `peer_worker`.
        setup: What it is to do.
        environment: Of the process.
        patience: Seconds after which a reply that has not come is an error.

    Raises:
        VariantFailed: It could not be started, or not get ready.
    """

    def __init__(
        self,
        command: Sequence[str],
        setup: Setup,
        environment: dict[str, str],
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._patience, self._pending, self._command = patience, b"", command
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._messages,
                env=environment,
                bufsize=0,
            )
        except OSError as error:
            self._messages.close()
            raise VariantFailed(f"cannot start {command[0]}: {error.strerror or error}") from error
        try:
            self.versions: dict[str, str] = self._ask({"do": "start", **asdict(setup)})["versions"]
        except BaseException:
            self._end()
            raise

    def step(self, batch: int) -> Sample:
        """One step on a batch of the data file (VariantFailed where it does not come back)."""
        reply = self._ask({"do": "step", "batch": batch})
        return Sample(reply["wall"], reply["cpu"], reply["loss"])

    def memory(self) -> int:
        """Peak bytes of the steps; ends the process."""
        return self._ask({"do": "finish"})["memory"]

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise VariantFailed(self._epitaph()) from None
        line = self._read_line()
        try:
            reply = json.loads(line)
        except ValueError:
            raise VariantFailed(f"its reply is not JSON: {line[:200]!r}") from None
        if "error" in reply:
            raise VariantFailed(reply["error"])
        return reply

    def _read_line(self) -> bytes:
        pipe = self._process.stdout
        assert pipe is not None
        until = time.monotonic() + self._patience
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise VariantFailed(f"no reply in {self._patience:.0f} s")
                part = os.read(pipe.fileno(), 65536)
                if not part:
                    raise VariantFailed(self._epitaph())
                self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _epitaph(self) -> str:
        """How the process ended, and the last that it said."""
        try:
            code = self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its output without ending"
        self._messages.seek(0)
        said = self._messages.read().decode(errors="replace").strip().splitlines()
        return f"it ended with code {code}" + (f": {said[-1].strip()}" if said else "")

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._messages.close()
