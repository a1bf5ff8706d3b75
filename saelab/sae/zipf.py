"""The Zipf curve that the densities of features follow: rank r against exp(c) (r + shift)^-a.

Ayonrinde (2024, arXiv 2411.02124) sets the allowance of a feature from a Zipf distribution and observes that
densities follow one except for the rarest features, which fall below it (paper, as its reviewers tell it).
How the paper parametrises and fits its curve is not known to us: the form with a shift, least squares in logarithms,
the ranks that count and the bounds of the exponent are a **reconstruction**.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelab_kernels.shapes import Float, Int, Tensor

MIN_POSITIVE = 10
"""With fewer densities above zero there is no curve to speak of."""


@dataclass(frozen=True)
class ZipfFit:
    """A fitted curve: the density of the feature of rank r, from 1, is ``exp(log_scale) (r + shift)^-exponent``."""

    exponent: float
    """a: how fast densities fall with the rank."""
    shift: float
    """Ranks by which the head is flattened; 0 for a pure power law."""
    log_scale: float
    """c: natural logarithm of the scale."""

    def expected(self, ranks: Int[Tensor, " ranks"] | Float[Tensor, " ranks"]) -> Float[Tensor, " ranks"]:
        """Return the densities (share of tokens) at some ranks, counted from 1, as float64."""
        return torch.exp(self.log_scale - self.exponent * torch.log(ranks.double() + self.shift))


def fit_zipf(
    densities: Float[Tensor, " d_sae"],
    *,
    share: float = 0.9,
    max_exponent: float = 2.0,
    min_exponent: float = 0.3,
) -> ZipfFit | None:
    """Fit the curve to the densities of features by least squares of logarithms.

    ``log q_(r) = c - a log(r + shift)`` over the ranks ``1 .. share * d_sae``, densities in falling order, zeros left
    out. The shift is the best of 0, 1/2, 1, 2, 4, ... up to ``d_sae / 4``; a and c are the exact optimum for it, a
    within its bounds: a collapsed SAE would else give an exponent that no healthy one has.

    Args:
        densities: Share of tokens on which each feature fired, in any order, any float dtype.
        share: Share of the ranks that count; the tail, which sags, does not.
        max_exponent: Largest exponent.
        min_exponent: Smallest exponent.

    Returns:
        The curve; None where fewer than 10 densities that count are above zero.
    """
    d_sae = densities.shape[0]
    counted = densities.double().cpu().sort(descending=True).values[: int(share * d_sae)]
    logs = counted[counted > 0].log()
    if len(logs) < MIN_POSITIVE:
        return None
    shifts = _shifts(d_sae)
    ranks = torch.arange(1, len(logs) + 1, dtype=torch.float64)
    x = torch.log(ranks + shifts[:, None])
    centred = x - x.mean(1, keepdim=True)
    slopes = (centred * (logs - logs.mean())).sum(1) / centred.square().sum(1)
    exponents = (-slopes).clamp(min_exponent, max_exponent)
    # For a given exponent the best constant makes the errors average to zero.
    scales = logs.mean() + exponents * x.mean(1)
    errors = (logs - scales[:, None] + exponents[:, None] * x).square().sum(1)
    best = int(errors.argmin())
    return ZipfFit(exponents[best].item(), shifts[best].item(), scales[best].item())


def _shifts(d_sae: int) -> Float[Tensor, " shifts"]:
    found, shift = [0.0, 0.5], 1.0
    while shift <= d_sae / 4:
        found.append(shift)
        shift *= 2
    return torch.tensor(found, dtype=torch.float64)
