"""Which data are planted. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from saelab.errors import UsageError

if TYPE_CHECKING:
    from saelab.evaluation.synthetic.planted import Planted

KINDS = {
    "bernoulli": "saelab.evaluation.synthetic.generator:PlantedFeatures",
    "power-law": "saelab.evaluation.synthetic.power_law:PowerLawFeatures",
    "correlated": "saelab.evaluation.synthetic.correlated:CorrelatedFeatures",
    "hierarchical": "saelab.evaluation.synthetic.hierarchical:HierarchicalFeatures",
    "orthonormal": "saelab.evaluation.synthetic.shrinkage:OrthonormalFeatures",
    "gba": "saelab.evaluation.synthetic.generator:ExactlyPlantedFeatures",
}
"""Classes of planted data by the name that ``--data`` takes."""


@dataclass(frozen=True, kw_only=True)
class PlantedSpec:
    """A kind of planted data with its options; what is not given has the default of its kind."""

    data: Literal["bernoulli", "power-law", "correlated", "hierarchical", "orthonormal", "gba"] = "bernoulli"
    """How features occur; ``gba`` (3 or 20 equal features, unit norm) is only for replicating published tables."""
    n_features: int | None = None
    """Planted directions."""
    d_in: int | None = None
    """Dimensions that they share."""
    mean_active: float | None = None
    """Mean number of features that are on in a row."""
    noise: float | None = None
    """Standard deviation of Gaussian noise added to every element."""
    exponent: float | None = None
    """power-law: how fast the frequency falls with the rank."""
    offset: float | None = None
    """power-law: added to the rank, flattens the head."""
    correlation: float | None = None
    """correlated: correlation of two features of a group, from 0 to 1."""
    group_size: int | None = None
    """correlated: features in a group."""
    children: int | None = None
    """hierarchical: children of each parent."""
    child_share: float | None = None
    """hierarchical: probability that a child is on where its parent is."""
    active: tuple[int, ...] = ()
    """gba: numbers of features that are on, taken by the rows in turn."""
    data_seed: int = 0
    """Seed of the planted data and of their order in training."""

    def make(self) -> Planted:
        """Make the planted data.

        Raises:
            UsageError: An option is not of this kind of data, or its value cannot work.
        """
        if self.data not in KINDS:
            raise UsageError(f"planted data {self.data!r} are unknown; known: {', '.join(KINDS)}")
        module, _, name = KINDS[self.data].partition(":")
        kind = getattr(import_module(module), name)
        given = self._given()
        known = {field.name for field in fields(kind)}
        if unknown := [f"--{option.replace('_', '-')}" for option in given if option not in known]:
            raise UsageError(f"{', '.join(unknown)}: the data {self.data} have no such option")
        return kind(**given, seed=self.data_seed)

    def _given(self) -> dict[str, Any]:
        options = {f.name: getattr(self, f.name) for f in fields(PlantedSpec)}
        return {
            name: value
            for name, value in options.items()
            if name not in ("data", "data_seed") and value not in (None, ())
        }
