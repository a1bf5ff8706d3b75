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


def draw_keys(seed: int, purpose: int, features: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return what tells the draws of each feature apart, for `lots_of`.

    Args:
        seed: Of the index.
        purpose: Different draws of one feature are independent.
        features: Indices of features.
    """
    keys = np.zeros(len(features), dtype=np.uint64)
    salts = (np.uint64(seed), np.uint64(purpose), features.astype(np.uint64))
    with np.errstate(over="ignore"):
        for salt in salts:
            keys = mixed(keys + salt + _GOLDEN)
    return keys


def lots_of(keys: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a number for each key and token position; the smallest ones of a set are a uniform sample of it.

    Numbers of one key are all different.
    """
    with np.errstate(over="ignore"):
        return mixed(positions.astype(np.uint64) * _GOLDEN + keys)


def lots(seed: int, purpose: int, feature: int, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the numbers of one feature; see `draw_keys` and `lots_of`."""
    return lots_of(draw_keys(seed, purpose, np.array([feature])), positions)


def smallest(numbers: NDArray[np.uint64], n: int) -> NDArray[np.int64]:
    """Return where the ``n`` smallest numbers stand, the smallest first."""
    if n >= len(numbers):
        return np.argsort(numbers, kind="stable")
    found = np.argpartition(numbers, n)[:n]
    return found[np.argsort(numbers[found], kind="stable")]
