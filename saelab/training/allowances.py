"""How many tokens of a batch each feature may pick: allowances that sum to the budget, and whole numbers from them."""

from __future__ import annotations

import torch

from saelab.errors import UsageError
from saelab_kernels.shapes import Float, Int, Tensor

UNIT = 1 << 16
"""Allowances are counted in this part of a token, so that their sums are exact on every device."""
_TURN = 40_503
"""About UNIT over the golden ratio, and odd: offsets of following steps spread evenly and visit every value."""
_HALVINGS = 200


def filled_allowances(
    weights: Float[Tensor, " d_sae"], total: int, *, least: float, most: int
) -> Int[Tensor, " d_sae"]:
    """Return allowances in proportion to weights within bounds, whose sum is exactly the budget.

    ``clip(c w_i, least, most)`` with the level c at which the sum is ``total``: water that fills a vessel with a floor
    and a lid. Rounding ``total * w_i`` and clipping it would lose or add whatever the bounds cut off (derived; the
    bounds and their use for Feature Choice are a reconstruction).

    Args:
        weights: Positive numbers, any scale.
        total: Tokens of a batch that all features pick together.
        least: Smallest allowance; lowered to ``total / d_sae`` where the budget is smaller than all floors.
        most: Largest allowance: the tokens of the batch.

    Returns:
        int64, in units of 1 / 65,536 token.

    Raises:
        UsageError: The budget is larger than ``most`` for every feature.
    """
    d_sae = len(weights)
    if total > d_sae * most:
        raise UsageError(f"a budget of {total:,} pairs is more than {d_sae:,} features in {most:,} tokens")
    least = min(least, total / d_sae)
    logs = weights.double().cpu().log()
    # In logarithms, since weights may differ by many orders: at `low` all lie at the floor, at `high` at the lid.
    low = torch.tensor(max(least, 1e-9)).log() - logs.max() - 1
    high = torch.tensor(float(most)).log() - logs.min() + 1
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_too_much = (logs + middle).exp().clamp(least, most).sum() > total
        low, high = (low, middle) if is_too_much else (middle, high)
    units = ((logs + low).exp().clamp(least, most) * UNIT).long()
    return units + _spread(total * UNIT - int(units.sum()), most * UNIT - units)


def budgets_of_step(allowances: Int[Tensor, " d_sae"], step: int) -> Int[Tensor, " d_sae"]:
    """Return the whole numbers of tokens that features may pick in a step (derived: systematic sampling).

    Each is its allowance rounded down or up, so that the mean over steps is the allowance, also below 1, and the
    sum is the whole budget in every step. It is a function of the step: nothing has to be remembered.

    Args:
        allowances: In units of 1 / 65,536 token; their sum is a whole number of tokens.
        step: Number of the step.
    """
    ends = allowances.cumsum(0) + step * _TURN % UNIT
    whole = ends // UNIT
    return torch.diff(whole, prepend=whole.new_zeros(1))


def _spread(missing: int, room: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return ``missing`` units, which rounding down took, spread evenly over where there is room for them."""
    open_ends = room > 0
    share, rest = divmod(missing, max(1, int(open_ends.sum())))
    first = open_ends.cumsum(0) <= rest
    return open_ends * (share + first.long())
