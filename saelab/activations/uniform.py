"""Numbers between 0 and 1 that follow from a position and a seed: the same in whatever order they are asked for."""

from __future__ import annotations

import numpy as np
import torch

from saelab_kernels.shapes import Float, Int, Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BITS = 53


def uniform_numbers(index: Int[Tensor, "*shape"], seed: int) -> Float[Tensor, "*shape"]:
    """Return a float64 number in [0, 1) for each position.

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014; its constants are the reference code's), applied to the
    seed and then to the position.

    Args:
        index: Positions, int64, at least 0.
        seed: Decides the numbers, from 0 to 2^63 - 1.
    """
    positions = index.cpu().numpy().astype(np.uint64)
    start = _mixed(np.array([seed], dtype=np.uint64))
    with np.errstate(over="ignore"):
        bits = _mixed(start + positions * _GOLDEN)
    return torch.from_numpy((bits >> np.uint64(64 - _BITS)).astype(np.float64) / 2.0**_BITS)


def _mixed(bits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        bits = bits + _GOLDEN
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
