"""Chance that depends on nothing but what it is about: the same examples in any order and any batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a 64-bit mix of each number (Steele, Lea, Flood 2014: the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def lots(seed: int, purpose: int, feature: int, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a number for each position; the smallest ones of a set are a uniform sample of it.

    Args:
        seed: Of the index.
        purpose: Different draws of one feature are independent.
        feature: Index of the feature.
        positions: Token positions.
    """
    with np.errstate(over="ignore"):
        salt = np.array([seed, purpose, feature], dtype=np.uint64)
        key = np.uint64(0)
        for part in salt:
            key = mixed(np.array([key + part + _GOLDEN], dtype=np.uint64))[0]
        return mixed(positions.astype(np.uint64) * _GOLDEN + key)


def smallest(numbers: NDArray[np.uint64], n: int) -> NDArray[np.int64]:
    """Return where the ``n`` smallest numbers stand, the smallest first."""
    if n >= len(numbers):
        return np.argsort(numbers, kind="stable")
    found = np.argpartition(numbers, n)[:n]
    return found[np.argsort(numbers[found], kind="stable")]
