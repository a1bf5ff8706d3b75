"""What every launch needs: the right device, rows that kernels can read, sizes of blocks, the type of sums."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the work is divided. The results depend on it by rounding only. No number is measured yet."""

    chunk: int = 64
    """Entries of a feature that one program does; a feature with more is divided."""
    entries: int = 4
    """Entries whose rows are read together, a power of 2: 4 by 256 float32 are 16 numbers a thread."""
    columns: int = 256
    """Longest part of a row held in registers, a power of 2. 256 divides the usual widths: no lane is idle."""
    warps: int = 2
    """Few, so that many programs fit on a multiprocessor: each waits for one row after the other."""
    encoder_programs: int = 8192
    """Most programs of the encoder's pass where `b_dec` gets a gradient through it: each leaves a row of sums."""

    def constants(self, dtype: torch.dtype, *widths: int) -> dict[str, Any]:
        """Constants of a kernel that reads rows of these widths and type."""
        return {
            "E": self.entries,
            "BLOCK": min(self.columns, triton.next_power_of_2(max(16, *widths))),
            "ACC": tl.float64 if sum_dtype(dtype) == torch.float64 else tl.float32,
            "num_warps": self.warps,
        }


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device; inside this it is the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def readable(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The tensor itself if each row lies together, whatever is between the rows; else a copy."""
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """In what numbers of this type are added: float64 stays, all others are added in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
