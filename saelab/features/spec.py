"""How a feature index is built. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from saelab.errors import DamagedFileError, UsageError
from saelab.fields import read_fields

Mode = Literal["exact", "streaming"]
Part = Literal["neighbors", "coactivation", "near-miss"]
PARTS: tuple[Part, ...] = ("neighbors", "coactivation", "near-miss")
DEFAULT_PARTS: tuple[Part, ...] = ("neighbors", "coactivation")


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """What is kept of every feature."""

    tokens: int = 0
    """Kept tokens to index at most, in whole rows; 0 for all that there are."""
    mode: Mode = "exact"
    """``exact`` keeps all codes on disk while it works, ``streaming`` a bounded state whatever the number of tokens."""
    top: int = 32
    """Strongest examples of a feature, at most one from each document."""
    intervals: int = 8
    """Equal intervals from 0 to the largest activation, from each of which examples are drawn."""
    per_interval: int = 6
    """Examples of each interval."""
    random: int = 8
    """Examples drawn from all active tokens."""
    non_active: int = 8
    """Examples of the same token as the strongest example's, where the feature is not active."""
    near_miss: int = 8
    """Examples just below what the SAE keeps, where that part is built."""
    window: int = 64
    """Tokens before and after an example's peak whose activations are kept with it."""
    histogram_bins: int = 40
    """Bins of equal width from 0 to the largest activation."""
    logits: int = 20
    """Tokens that a feature promotes most, and as many that it suppresses most."""
    logit_bins: int = 50
    """Bins of the histogram of a feature's effect on all logits."""
    neighbors: int = 32
    """Features whose decoder directions are nearest, and as many that are active together with it."""
    coactivation_samples: int = 512
    """Active tokens of a feature that are looked at for what else is active on them."""
    seed: int = 0
    """Decides which examples are drawn; nothing else is random."""

    def check(self) -> None:
        """Refuse what cannot be built.

        Raises:
            UsageError: A number is out of its range.
        """
        bounds = {
            "tokens": (0, 2**40),
            "top": (1, 255),
            "intervals": (1, 64),
            "per_interval": (0, 255),
            "random": (0, 255),
            "non_active": (0, 255),
            "near_miss": (0, 255),
            "window": (1, 4096),
            "histogram_bins": (2, 1024),
            "logits": (1, 255),
            "logit_bins": (2, 1024),
            "neighbors": (1, 255),
            "coactivation_samples": (1, 2**20),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"index: {name} must be from {low} to {high:,}, not {getattr(self, name):,}")

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as plain JSON values."""
        return asdict(self)


def index_config_from_json(raw: Any, where: str) -> IndexConfig:
    """Read a configuration strictly.

    Raises:
        DamagedFileError: A field is unknown, missing, mistyped or out of range.
    """
    config = read_fields(IndexConfig, raw, where, DamagedFileError)
    try:
        config.check()
    except UsageError as error:
        raise DamagedFileError(f"{where}: {error}") from error
    return config
