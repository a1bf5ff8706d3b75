"""The default learning rate. Imports no torch."""

from __future__ import annotations

REFERENCE_WIDTH = 2**14
REFERENCE_LR = 2e-4
LONG_RUN_STEPS, LARGEST_LR_FACTOR = 100_000, 8.0


def default_lr(width: int, steps: int) -> float:
    """Return the peak learning rate for a width and a length of the run.

    `2e-4 / sqrt(width / 2^14)` for long runs (reference code: dictionary_learning, after Gao et al.
    2024), times `sqrt(1e5 / steps)` for shorter ones, at most 8 times (ours: with 4,096 features and
    1,464 steps on the embedded model the best of the rates tried that leaves no feature dead is 3.2e-3,
    which is 8 times the rule; docs/benchmarks.md).
    """
    shortness = (LONG_RUN_STEPS / steps) ** 0.5
    return min(max(shortness, 1.0), LARGEST_LR_FACTOR) * REFERENCE_LR / (width / REFERENCE_WIDTH) ** 0.5
