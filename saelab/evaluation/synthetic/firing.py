"""Whether the latents that found planted features also fire where those features are on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Float, Int, Tensor


@dataclass(frozen=True, kw_only=True)
class Firing:
    """Precision and recall of the matched latents' firing (value > 0); None where nothing defines a value."""

    matched: int
    """Planted features with a latent of their own; the others do not count below."""
    precision: float | None
    """Of all times that a matched latent fired, the share at which its feature was on (micro average)."""
    recall: float | None
    """Of all times that a matched feature was on, the share at which its latent fired (micro average)."""
    precision_macro: float | None
    """Mean over the matched latents that fired of their own precision."""
    recall_macro: float | None
    """Mean over the matched features that were on of their own recall."""


class FiringAccumulator:
    """Counts, for each matched pair, when feature and latent were on.

    Args:
        partners: The latent of each planted feature, -1 where it has none, as `partners` of
            `saelab.evaluation.consistency` returns it; int64.
    """

    def __init__(self, partners: Int[Tensor, " n_features"]) -> None:
        self._features = (partners >= 0).nonzero()[:, 0]
        self._latents = partners[self._features]
        self._both, self._fired, self._on = torch.zeros(3, len(self._features), dtype=torch.int64)

    def update(self, coefficients: Float[Tensor, "rows n_features"], code: SparseCode) -> None:
        """Add some rows: what they were made of, and what the SAE made of them. Holds a dense code meanwhile."""
        if coefficients.shape[0] != code.n_rows:
            raise ValueError(
                f"firing: {coefficients.shape[0]} planted rows and a code of {code.n_rows} do not belong together"
            )
        on = coefficients[:, self._features] > 0
        fired = code.dense().cpu()[:, self._latents] > 0
        self._both += (on & fired).sum(0)
        self._fired += fired.sum(0)
        self._on += on.sum(0)

    def result(self) -> Firing:
        """Return precision and recall over all rows so far."""
        return Firing(
            matched=len(self._features),
            precision=_micro(self._both, self._fired),
            recall=_micro(self._both, self._on),
            precision_macro=_macro(self._both, self._fired),
            recall_macro=_macro(self._both, self._on),
        )


def _micro(hits: Tensor, of: Tensor) -> float | None:
    total = int(of.sum())
    return int(hits.sum()) / total if total else None


def _macro(hits: Tensor, of: Tensor) -> float | None:
    defined = of > 0
    return (hits[defined] / of[defined].double()).mean().item() if bool(defined.any()) else None
