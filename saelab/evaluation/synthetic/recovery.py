"""How many planted directions a dictionary contains."""

from __future__ import annotations

from dataclasses import dataclass

from saelab.evaluation.consistency import max_cosines, partnered_share
from saelab_kernels.shapes import Bool, Float, Tensor


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What a dictionary found of the planted directions; shares from 0 to 1."""

    frr_80: float
    """Feature recovery rate: share of planted directions with a decoder row at a cosine above 0.8."""
    frr_90: float
    """The same above 0.9."""
    one_to_one_90: float
    """Share of planted directions with a decoder row of their own at a cosine above 0.9."""
    mmcs: float
    """Mean over planted directions of the largest cosine with a decoder row."""
    mmcs_features: float
    """Mean over (alive) decoder rows of the largest cosine with a planted direction; 0 where none is alive."""


def feature_recovery(
    W_dec: Float[Tensor, "d_sae d_in"], directions: Float[Tensor, "n_features d_in"], threshold: float = 0.9
) -> float:
    """Return the feature recovery rate: the share of planted directions that some decoder row points along.

    A direction counts when its best cosine with a decoder row is above ``threshold``; one row may
    serve several directions (paper: Chen et al. 2025, arXiv 2506.14002). Rows of zero length serve none.
    """
    return (max_cosines(directions, W_dec) > threshold).double().mean().item()


def matched_recovery(
    W_dec: Float[Tensor, "d_sae d_in"], directions: Float[Tensor, "n_features d_in"], threshold: float = 0.9
) -> float:
    """Return the share of planted directions in the largest one-to-one matching with decoder rows.

    Only pairs with a cosine above ``threshold`` are matched; exact, see `saelab.evaluation.consistency.partners`.
    """
    return partnered_share(directions, W_dec, threshold)


def measure_recovery(
    W_dec: Float[Tensor, "d_sae d_in"],
    directions: Float[Tensor, "n_features d_in"],
    alive: Bool[Tensor, " d_sae"] | None = None,
) -> Recovery:
    """Return every measure of recovery.

    Args:
        W_dec: Decoder.
        directions: What was planted.
        alive: Decoder rows that count for ``mmcs_features``; all where not given. The others count all rows.
    """
    best = max_cosines(directions, W_dec)
    of_features = max_cosines(W_dec, directions, alive_a=alive)
    return Recovery(
        frr_80=(best > 0.8).double().mean().item(),
        frr_90=(best > 0.9).double().mean().item(),
        one_to_one_90=matched_recovery(W_dec, directions, 0.9),
        mmcs=best.double().mean().item(),
        mmcs_features=of_features.double().mean().item() if len(of_features) else 0.0,
    )
