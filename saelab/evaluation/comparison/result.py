"""What a comparison finds, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from saelab.evaluation.comparison.pareto import Front
from saelab.evaluation.comparison.profile import DensityCurve
from saelab.evaluation.comparison.seeds import SeedConsistency
from saelab.evaluation.comparison.table import TableRow


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run of a comparison."""

    row: TableRow
    """Its row of the table."""
    active_histogram: tuple[int, ...]
    """Tokens with 0, 1, 2, ... active features."""
    density: DensityCurve
    """Densities of its features by rank."""
    fvu_by_difficulty: tuple[float | None, ...]
    """FVU within each tenth of the tokens by the model's loss; empty where there are no losses."""
    warnings: tuple[str, ...]
    """What makes its numbers doubtful."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs on the same tokens."""

    runs: tuple[ComparedRun, ...]
    """In the order in which they were given."""
    fronts: tuple[Front, ...]
    """Settings that differ in k alone, with means and ranges over seeds."""
    common_l0: float | None
    """An L0 inside the measured range of every front; None where there is none."""
    at_common_l0: dict[str, dict[str, float | None]]
    """For each front each metric at that L0, interpolated linearly in log L0; empty without one."""
    consistency: tuple[SeedConsistency, ...]
    """For each setting with several seeds, how much they have in common."""
    difficulty: tuple[float, ...]
    """Mean loss of the model in each tenth of the tokens, nats; empty where there are no losses."""
    hook: str
    """Module paths that all runs reconstruct, joined by a comma."""
    source: dict[str, Any]
    """Where the tokens come from, as an evaluation records it."""
    tokens_hash: str
    """Digest of the tokens."""
    n_tokens: int
    """Tokens that all runs were evaluated on."""
    left_out: tuple[str, ...]
    """Members of groups that are not finished, one sentence each."""

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values; ``runs`` holds the rows of the table with their details."""
        plain = asdict(self)
        plain["runs"] = [one.pop("row") | one for one in plain["runs"]]
        return plain
