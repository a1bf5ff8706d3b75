"""What a benchmark run is told. Imports no torch: two command lines share it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal


class BenchError(Exception):
    """The benchmark cannot run as asked: one line that names the value and what to do."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Time the sparse operators and the training step on this machine."""

    d_in: int = 256
    """Width of the activations."""
    d_sae: int = 8192
    """Number of features."""
    k: int = 32
    """Features kept for a token."""
    batch: int = 2048
    """Tokens in a step."""
    rounds: int = 5
    """Rounds; each runs every variant once, in turn."""
    part: Literal["all", "operators", "step"] = "all"
    """What to time: single operators, the training step, or both."""
    scaling: bool = False
    """Also time how operators and step grow with d_sae, k and batch."""
    device: str = "cpu"
    """``cpu`` or ``cuda``; on ``cuda`` the step is also timed as a CUDA graph."""
    backend: str | None = None
    """Implementation of the operators; chosen by the device where not given.
    Beside ``cpu``, ``cpu-float32`` is timed."""
    threads: int | None = None
    """Processor threads of every variant; what torch takes where not given."""
    clip: float = 1.0
    """Norm that the variants with clipping clip at."""
    dead_share: float = 0.1
    """Share of the features that the variants with AuxK treat as dead."""
    lr: float = 1e-4
    """Learning rate of all steps."""
    copy_mib: int = 256
    """Size of the copy that measures the memory's bandwidth, in MiB."""
    peer_python: Path | None = None
    """Interpreter of an environment with sae-lens, eai-sparsify and dictionary-learning; they are timed beside.
    Without it only the dense step of autograd is."""
    out: Path | None = None
    """Write everything measured to this file, as JSON."""
    figure: Path | None = None
    """Draw a figure, .html or .svg; needs plotly."""

    @property
    def aux_k(self) -> int:
        """Dead features that AuxK picks for a token: half of d_in (Gao et al. 2024, B.1), at most all dead ones."""
        return max(1, min(self.d_in // 2, self.n_dead))

    @property
    def n_dead(self) -> int:
        """Features that count as dead."""
        return max(1, round(self.dead_share * self.d_sae))

    def sized(self, **sizes: int) -> BenchOptions:
        """The same with other sizes."""
        return replace(self, **sizes)

    def check(self) -> None:
        """Refuse values that cannot be measured (BenchError)."""
        for name in ("d_in", "d_sae", "k", "batch", "rounds", "copy_mib"):
            if getattr(self, name) < 1:
                raise BenchError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise BenchError(f"--threads must be at least 1, not {self.threads}")
        if self.k > self.d_sae:
            raise BenchError(f"--k {self.k} is more than the {self.d_sae} features")
        if not (0 < self.dead_share <= 1 and self.lr > 0 and self.clip > 0):
            raise BenchError("--dead-share must lie in (0, 1], --lr and --clip above 0")
        if self.figure is not None and self.figure.suffix not in (".html", ".svg"):
            raise BenchError(f"--figure {self.figure}: the name must end in .html or .svg")
        for path in (self.out, self.figure):
            if path is not None and not path.parent.is_dir():
                raise BenchError(f"{path}: there is no folder {path.parent}")
            if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
                raise BenchError(f"{path} cannot be written")
