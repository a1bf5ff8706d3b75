"""Weights before the first step."""

from __future__ import annotations

import torch

from saelab.sae.autoencoder import SAEParameters
from saelab_kernels.shapes import Float, Tensor

MEDIAN_SAMPLE = 32_768
START_ROWS = 1_024
"""Rows that tell how long the first reconstruction is."""
SMALLEST = 1e-12


def geometric_median(
    x: Float[Tensor, "tokens d"], max_iterations: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, " d"]:
    """Return the point with the least mean distance to the rows of ``x``, by Weiszfeld's iteration.

    It is where `b_dec` starts (reference code: openai/sparse_autoencoder, dictionary_learning): unlike
    the mean it does not follow a few huge activations. Computed in float64 on the host.

    Args:
        x: Sample of activations, at most some ten thousand rows.
        max_iterations: Largest number of iterations.
        tolerance: Stop when a step is shorter than this share of the median's distance scale.
    """
    points = x.double().cpu()
    median = points.mean(0)
    for _ in range(max_iterations):
        distances = torch.linalg.vector_norm(points - median, dim=1)
        scale = distances.mean()
        if scale == 0:
            break
        weights = 1.0 / distances.clamp_min(1e-12 * scale)
        new = (points * weights[:, None]).sum(0) / weights.sum()
        step = torch.linalg.vector_norm(new - median)
        median = new
        if step <= tolerance * scale:
            break
    return median.to(x.dtype)


def initial_parameters(
    inputs: Float[Tensor, "tokens d_in"],
    targets: Float[Tensor, "tokens d_out"],
    d_sae: int,
    seed: int,
    *,
    tied: bool,
) -> SAEParameters:
    """Return unit-norm random directions around the geometric median of a sample of targets.

    `W_dec` rows are random with norm 1, `b_enc = 0`, `b_dec` the geometric median; `W_enc = W_dec^T`
    where the target is the input (paper: Gao et al. 2024), directions of its own otherwise. `W_enc` is
    kept in memory as the transpose of a contiguous ``[d_sae, d_in]`` matrix, the order that the kernels
    read fastest.
    """
    generator = torch.Generator().manual_seed(seed)
    W_dec = _unit_rows(d_sae, targets.shape[1], generator)
    W_enc = W_dec.clone() if tied else _unit_rows(d_sae, inputs.shape[1], generator)
    return SAEParameters(
        W_enc=W_enc.T,
        b_enc=torch.zeros(d_sae),
        W_dec=W_dec,
        b_dec=geometric_median(targets[:MEDIAN_SAMPLE]).float().cpu(),
    )


def shorten(params: SAEParameters, inputs: Float[Tensor, "rows d_in"]) -> None:
    """Scale ``W_enc`` so that the first reconstruction of ReLU features comes nearest to its input, in place (ours).

    With unit rows and half of all features on, it is about ``d_sae / (2 d_in)`` times too long.

    Args:
        params: Random weights with unit rows; ``b_enc`` is 0.
        inputs: A sample, before ``b_dec`` is subtracted.
    """
    centred = inputs[:START_ROWS].to(params.W_enc) - params.b_dec
    found = (centred @ params.W_enc).relu() @ params.W_dec
    params.W_enc.mul_((centred * found).sum() / (found * found).sum().clamp_min(SMALLEST))


def _unit_rows(n: int, d: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    rows = torch.randn(n, d, generator=generator)
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
