"""Everything that is measured of one SAE on planted data, and of SAEs that differ in their seed only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

import torch

from saelab.evaluation.autoencoder import Autoencoder, reconstruct_tile, tiles
from saelab.evaluation.consistency import max_cosines, partnered_share, partners
from saelab.evaluation.reconstruction import ReconstructionAccumulator, ReconstructionMetrics
from saelab.evaluation.synthetic.absorption import AbsorptionAccumulator
from saelab.evaluation.synthetic.firing import Firing, FiringAccumulator
from saelab.evaluation.synthetic.hierarchical import HierarchicalFeatures
from saelab.evaluation.synthetic.planted import Planted
from saelab.evaluation.synthetic.recovery import Recovery, measure_recovery
from saelab_kernels.shapes import Bool, Float, Tensor

TILE = 1024
FRESH_INDEX = 2**32
"""Batches from here on are for measuring; those for training have smaller indices."""


@dataclass(frozen=True)
class Measured:
    """One SAE on fresh planted data."""

    recovery: Recovery
    firing: Firing
    """Of the pairs at a cosine above 0.9."""
    absorption: float | None
    """Of parents by their children; None for data without any, and where no parent has a latent."""
    reconstruction: ReconstructionMetrics
    W_dec: Float[Tensor, "d_sae d_in"]
    alive: Bool[Tensor, " d_sae"]
    """Features that fired on these data."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values, side by side."""
        found = asdict(self.reconstruction)
        n_tokens = found.pop("n_tokens")
        own = {"absorption": self.absorption, "n_tokens": n_tokens}
        return {**asdict(self.recovery), **asdict(self.firing), **found, **own}


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """How alike SAEs are that differ in their seed only: means over ordered pairs of them, alive features only."""

    pairs: int
    """Unordered pairs of SAEs."""
    partnered_90: float
    """Mean share of features with a partner of their own in the other SAE, at a cosine above 0.9."""
    mcs_90: float
    """Mean share of features whose largest cosine with a feature of the other SAE is above 0.9."""
    mcs: float
    """Mean of these largest cosines."""


def measure(sae: Autoencoder, planted: Planted, rows: int) -> Measured:
    """Measure an SAE on fresh rows of the data that it was trained on.

    Args:
        sae: Its decoder rows are compared with the planted directions as they are.
        planted: The data.
        rows: Rows to draw, none of which is in a batch of a smaller index than `FRESH_INDEX`.
    """
    W_dec, directions = sae.W_dec.detach().cpu(), planted.directions()
    reconstruction = ReconstructionAccumulator(planted.d_in, W_dec.shape[0])
    matched = partners(directions, W_dec, 0.9)
    firing, absorption = FiringAccumulator(matched), None
    if isinstance(planted, HierarchicalFeatures):
        absorption = AbsorptionAccumulator(matched, planted.parents())
    for number, stretch in enumerate(tiles(rows, TILE)):
        batch = planted.batch(FRESH_INDEX + number, stretch.stop - stretch.start)
        found = reconstruct_tile(sae, batch.x.to(sae.W_dec.device), TILE)
        reconstruction.update(batch.x, found.x_hat.cpu(), found.code)
        firing.update(batch.coefficients, found.code)
        if absorption is not None:
            absorption.update(batch.coefficients, found.code)
    alive = reconstruction.features().count > 0
    return Measured(
        recovery=measure_recovery(W_dec, directions, alive),
        firing=firing.result(),
        absorption=None if absorption is None else absorption.result(),
        reconstruction=reconstruction.result(),
        W_dec=W_dec,
        alive=alive,
    )


def consistency(found: Sequence[Measured]) -> Consistency | None:
    """Compare every two of some SAEs; None for fewer than two."""
    if len(found) < 2:
        return None
    shares, similar, cosines = [], [], []
    for a, b in permutations(found, 2):
        shares.append(partnered_share(a.W_dec, b.W_dec, 0.9, alive_a=a.alive, alive_b=b.alive))
        best = max_cosines(a.W_dec, b.W_dec, alive_a=a.alive, alive_b=b.alive).double()
        similar.append((best > 0.9).double().sum() / max(len(best), 1))
        cosines.append(best.sum() / max(len(best), 1))
    return Consistency(
        pairs=len(shares) // 2,
        partnered_90=sum(shares) / len(shares),
        mcs_90=torch.stack(similar).mean().item(),
        mcs=torch.stack(cosines).mean().item(),
    )
