"""Features of features: a child is on only where its parent is, the setting in which absorption appears."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelab.evaluation.synthetic.planted import SparseSums, require
from saelab_kernels.shapes import Bool, Float, Int, Tensor


@dataclass(frozen=True, kw_only=True)
class HierarchicalFeatures(SparseSums):
    """Independent families of one parent and ``children`` children; a child implies its parent.

    A parent is on with probability p, and each of its children then with probability ``child_share``,
    independently; p follows from ``mean_active = n_parents p (1 + children child_share)``. A sparser
    code than the planted one exists: a latent ``parent + child`` beside a parent that stays silent where
    the child is on (absorption). It shows as a low recall of the parents.
    """

    children: int = 3
    """Children of each parent; features 0 to ``n_parents - 1`` are the parents, then come their children."""
    child_share: float = 0.25
    """Probability that a child is on where its parent is."""

    def __post_init__(self) -> None:
        require(self.children >= 1, f"children is {self.children}; it must be at least 1")
        require(
            self.n_features % (1 + self.children) == 0,
            f"n_features is {self.n_features}; families of {1 + self.children} must divide it",
        )
        require(0 < self.child_share <= 1, f"child_share is {self.child_share:g}; it must be in (0, 1]")
        super().__post_init__()

    @property
    def n_parents(self) -> int:
        """Number of families."""
        return self.n_features // (1 + self.children)

    def parents(self) -> Int[Tensor, " n_children"]:
        """Return the parent of each child (feature ``n_parents + j``), int64."""
        return torch.arange(self.n_features - self.n_parents) // self.children

    def frequencies(self) -> Float[Tensor, " n_features"]:
        parent = self.mean_active / (self.n_parents * (1 + self.children * self.child_share))
        found = torch.full((self.n_features,), parent, dtype=torch.float64)
        found[self.n_parents :] *= self.child_share
        return found

    def on(self, rows: int, generator: torch.Generator) -> Bool[Tensor, "rows n_features"]:
        parents = torch.rand(rows, self.n_parents, generator=generator) < self.frequencies()[0].float()
        n_children = self.n_features - self.n_parents
        chosen = torch.rand(rows, n_children, generator=generator) < self.child_share
        return torch.cat([parents, parents[:, self.parents()] & chosen], dim=1)
