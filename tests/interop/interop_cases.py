"""The cases of `scripts/make_interop_fixtures.py`: files of other tools and what these compute from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.interop.answers import Answers
from saelab.interop.read import Found, read_foreign
from saelab.sae.autoencoder import SparseAutoencoder
from saelab.storage.tensors import read_tensors
from saelab_kernels.shapes import Tensor

FIXTURES = Path(__file__).parent / "fixtures"
CASES = sorted(path.parent.name for path in FIXTURES.glob("*/about.json"))
EXPORTS = sorted(path.parent.name for path in FIXTURES.glob("exports/*/about.json"))


@dataclass(frozen=True)
class Case:
    """A folder of files and what another tool computes from them."""

    folder: Path

    @property
    def about(self) -> dict[str, Any]:
        """Who made it, and how it is read."""
        return json.loads((self.folder / "about.json").read_text())

    @property
    def sae(self) -> Path:
        """The folder or file to read."""
        return self.folder / self.about["sae"]

    def expected(self) -> dict[str, Tensor]:
        """Inputs, feature activations, reconstructions, and the length of one unit of each feature."""
        return read_tensors(self.folder / "expected.safetensors")

    def read(self, **answers: Any) -> Found:
        """Read it in its own terms."""
        pickle = self.about.get("allow_pickle", False)
        return read_foreign(self.sae, answers=Answers(**answers), allow_pickle=pickle)


def case(name: str) -> Case:
    """Return a case by its folder's name."""
    return Case(FIXTURES / name)


def errors(sae: SparseAutoencoder, expected: dict[str, Tensor]) -> tuple[float, float]:
    """Return how far an SAE is from what another tool computes, as the largest differences.

    Activations are compared as lengths, which both tools' units stand for: activation times length of one unit.
    """
    x_hat, code = sae.reconstruct(expected["x"])
    found = code.dense() * sae.W_dec.norm(dim=1)
    wanted = expected["features"] * expected["length"]
    assert ((found > 0) == (wanted > 0)).all()
    return float((found - wanted).abs().max()), float((x_hat - expected["x_hat"]).abs().max())
