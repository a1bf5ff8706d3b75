"""Whether a general feature's latent falls silent where a special feature is on."""

from __future__ import annotations

import torch

from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Bool, Float, Int, Tensor


class AbsorptionAccumulator:
    """Counts how often the latents of parents are silent, with a child on and with none.

    The absorption of a parent is the share of tokens on which its latent is silent while one of its children is on,
    less that share where the parent is on alone: 0 where children make no difference, 1 where the latent is always
    silent beside a child and never otherwise (ours, after the absorption of Chanin et al. 2024, arXiv 2409.14507; here
    the truth is known, so that no probe is needed). The second share takes away what a small budget leaves out anyway.

    Args:
        partners: The latent of each planted feature, -1 where it has none; int64.
        parents: The parent of each child; the children are the last features, in order.
    """

    def __init__(self, partners: Int[Tensor, " n_features"], parents: Int[Tensor, " n_children"]) -> None:
        self._n_parents = len(partners) - len(parents)
        self._parents = parents
        self._matched = (partners[: self._n_parents] >= 0).nonzero()[:, 0]
        self._latents = partners[self._matched]
        self._silent, self._seen = torch.zeros(2, 2, len(self._matched), dtype=torch.int64).unbind()

    def update(self, coefficients: Float[Tensor, "rows n_features"], code: SparseCode) -> None:
        """Add some rows: what they were made of, and what the SAE made of them. Holds a dense code meanwhile."""
        on = coefficients > 0
        parents = on[:, : self._n_parents]
        with_child = self._any_child(on[:, self._n_parents :], len(on))
        silent = code.dense().cpu()[:, self._latents] <= 0
        for place, chosen in enumerate((parents & with_child, parents & ~with_child)):
            here = chosen[:, self._matched]
            self._seen[place] += here.sum(0)
            self._silent[place] += (here & silent).sum(0)

    def result(self) -> float | None:
        """Return the mean over matched parents that were seen both ways; None where there is none."""
        both = (self._seen > 0).all(0)
        if not bool(both.any()):
            return None
        shares = self._silent[:, both].double() / self._seen[:, both]
        return float((shares[0] - shares[1]).mean())

    def _any_child(
        self, children: Bool[Tensor, "rows n_children"], rows: int
    ) -> Bool[Tensor, "rows n_parents"]:
        counts = torch.zeros(rows, self._n_parents, dtype=torch.int64)
        return counts.index_add_(1, self._parents, children.long()) > 0
