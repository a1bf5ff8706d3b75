"""One threshold that keeps as many features on average as a rule that ranks all pairs of a batch.

`calibrated_threshold(params, rows, k)` finds it on frozen weights over a stream of training rows: the value that the
``round(k * N)``-th largest pre-activation of all N rows exceeds. `averaged` keeps a running average of what training
saw. Both serve every recipe whose batches keep ``round(k * B)`` pairs; where decoder rows have free norms, give the
weights of the inference form, whose rows have norm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from saelab.sae.autoencoder import SAEParameters
from saelab.training.recipes.moments import Clock, Rows
from saelab_kernels.rules import PerBatch
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Float, Tensor

CALIBRATION_ROWS = 131_072
"""Training rows over which thresholds are calibrated, about; fewer where there are fewer."""
CHUNK_ROWS = 8_192
"""Rows that are encoded at a time."""
AVERAGED_SHARE = 0.02
"""Share of the run over which running averages forget; the reference code forgets over 1,000 steps of any run."""


def calibrated_threshold(
    params: SAEParameters, rows: Rows, k: float, n_rows: int = CALIBRATION_ROWS
) -> Float[Tensor, ""]:
    """Return the value that the ``round(k * N)`` largest pre-activations of N training rows exceed (derived).

    The value lies between that pre-activation and the next one, and is 0 where fewer are positive. The mean of each
    token's smallest kept value would give a larger L0 than k. Exact over the rows, in memory of about ``2 k N``
    numbers: each chunk of rows gives its ``2 k`` largest a row; should a chunk hold more of the largest than that,
    which its own boundary tells, more are taken.

    Args:
        params: Frozen weights.
        rows: Gives training rows as the encoder sees them.
        k: Mean number of features that are to be kept for a row, above 0.
        n_rows: Rows to look at, about.
    """
    room = 2.0
    while True:
        values, left_out, total = _largest(params, rows(n_rows), room * k)
        upper, lower = _neighbours(values, max(1, round(k * total)))
        if left_out <= lower:
            return (upper + lower) / 2 if lower > 0 else torch.zeros_like(lower)
        room *= 2


def averaged(average: Float[Tensor, "*n"], seen: Float[Tensor, "*n"], clock: Clock) -> Float[Tensor, "*n"]:
    """Return an exponential average after one more step; the first value is copied.

    Args:
        average: The average so far; NaN where nothing has been seen.
        seen: What this step saw; NaN where it saw nothing.
        clock: Says how long the run is: the average forgets over 2 % of its steps.
    """
    rate = 1 / max(1.0, AVERAGED_SHARE * clock.steps)
    moved = average + rate * (seen - average)
    return torch.where(seen.isnan(), average, torch.where(average.isnan(), seen, moved))


def in_chunks(tiles: Iterable[Tensor], rows: int = CHUNK_ROWS) -> Iterator[Float[Tensor, "rows d_in"]]:
    """Join tiles of rows until there are at least ``rows`` of them; the last chunk may be smaller."""
    waiting: list[Tensor] = []
    for tile in tiles:
        waiting.append(tile)
        if sum(map(len, waiting)) >= rows:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _largest(params: SAEParameters, tiles: Iterable[Tensor], k: float) -> tuple[Tensor, Tensor, int]:
    """Return the ``k`` largest a row of each chunk, the largest value that was left out, and the number of rows."""
    kept, left_out, total = [], params.b_enc.new_zeros(()), 0
    for x in in_chunks(tiles):
        found = encode_select(x, params.W_enc, params.b_enc, PerBatch(k), boundary=True)
        assert found.boundary is not None
        kept.append(found.code.trimmed().values)
        left_out, total = torch.maximum(left_out, found.boundary), total + len(x)
    return torch.cat(kept), left_out, total


def _neighbours(values: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """Return the largest value but ``place - 1``, and the one after it; 0 where there are not so many."""
    ordered = torch.cat([values.clamp_min(0).sort(descending=True).values, values.new_zeros(place + 1)])
    return ordered[place - 1], ordered[place]
