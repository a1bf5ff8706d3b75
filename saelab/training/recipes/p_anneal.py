"""ReLU with a penalty whose power falls during the run (p-annealing)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.training.initialise import shorten
from saelab.training.objectives import normalised_mse
from saelab.training.recipes.moments import (
    Clock,
    Forward,
    InferenceForm,
    Leaves,
    Loss,
    Rows,
    Setup,
    State,
    Traits,
)
from saelab.training.sparsity_control import COEFFICIENT, TERM, SteeredRecipe
from saelab_kernels.code import SparseCode
from saelab_kernels.rules import Threshold
from saelab_kernels.shapes import Float, Tensor

NORMS, NEXT_NORMS, RESCALE = "norms", "next_norms", "rescale"
QUEUE = 10
FIRST_GUESS = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class PAnneal(SteeredRecipe):
    """ReLU features under `sum_i f_i^p`, p falling from 1 (Karvonen et al. 2024; reference code: dictionary_learning).

    `f = ReLU((x - b_dec) W_enc + b_enc) [tokens, d_sae]`, decoder rows of norm 1, and the loss
    `mean_b (|x - x_hat|^2 + coefficient * rescale * sum_i f_i^p) / Var(x)`. p falls from 1 to ``p_end`` in equal
    ``updates``, evenly spread from ``anneal_start`` to the end of the run (of its first length); an extension goes
    on with ``p_end``. At an update ``rescale`` is multiplied by the sum of the last 10 steps' penalties with the
    old p over their sum with the new one, so that the penalty's size stays.

    The size is not the pressure on L0, so the coefficient is steered too, so that L0 reaches k (reconstruction, see
    `SparsityControl`): the rescaling foresees an update, the control corrects what is left. Each has its own state,
    and the logged coefficient is their product. With a fixed coefficient there is the rescaling alone, as in the
    reference code.

    For p < 1 the slope `p f^(p-1)` has no bound at 0: the penalty is `f max(f, smallest)^(p-1)`, that is the power
    above ``smallest`` and a line below it (ours; the reference code clamps at 1e-8, which lets one entry
    outweigh a batch). Ours too: the first encoder is shortened so that the first reconstruction, of half of all
    features, is of the length of its input; else the error and the penalty that answers it silence features at once.

    Inference is the training forward: the threshold is 0.
    """

    name: ClassVar[str] = "p-anneal"
    traits: ClassVar[Traits] = Traits(aux=False)

    lp_coefficient: float | None = None
    """A fixed coefficient of the penalty; steered so that L0 reaches k where not given."""
    p_end: float = 0.2
    """The last power."""
    updates: int = 10
    """Steps in which the power falls."""
    anneal_start: float = 0.2
    """Share of the run after which it begins to fall."""
    smallest: float = 1e-2
    """Value, in normalised units, below which the penalty is linear."""

    @property
    def fixed(self) -> float | None:
        return self.lp_coefficient

    def check(self, d_sae: int) -> None:
        SteeredRecipe.check(self, d_sae)
        if not 0 < self.p_end <= 1:
            raise UsageError(f"p-anneal: p_end must be above 0 and at most 1, not {self.p_end}")
        if self.updates < 1 or not 0 <= self.anneal_start < 1 or not 0 < self.smallest < float("inf"):
            raise UsageError(
                "p-anneal needs updates >= 1, anneal_start in [0, 1) and smallest > 0, not "
                f"{self.updates}, {self.anneal_start} and {self.smallest}"
            )

    def init(self, params: SAEParameters, setup: Setup) -> State:
        if not setup.warm:
            shorten(params, setup.inputs)
        queues = {NORMS: torch.zeros(QUEUE), NEXT_NORMS: torch.zeros(QUEUE), RESCALE: torch.ones(())}
        return queues | self.control.start(FIRST_GUESS * setup.variance**0.5)

    def power(self, updates_done: int) -> float:
        """Return p after so many updates."""
        return 1 - (1 - self.p_end) * min(updates_done, self.updates) / self.updates

    def updates_before(self, clock: Clock) -> int:
        """Return the number of updates of p that precede a step; the first comes with the step at ``anneal_start``."""
        done = (clock.share - self.anneal_start) / (1 - self.anneal_start)
        # Shares are sums of rounded numbers: an update must not come a step late by the last bit.
        return min(self.updates, int(done * self.updates + 1e-9) + 1) if done > -1e-9 else 0

    def penalty(self, code: SparseCode, p: float) -> Float[Tensor, ""]:
        """Return the mean over tokens of `sum_i f_i^p`, linear below ``smallest``."""
        f = code.values
        return (f * f.clamp_min(self.smallest) ** (p - 1)).sum() / max(code.n_rows, 1)

    def objective(self, leaves: Leaves, state: State, clock: Clock, variance: float) -> Loss:
        p = self.power(self.updates_before(clock))
        coefficient = state[COEFFICIENT] * state[RESCALE]
        penalty = self.penalty(leaves.code, p)
        loss = normalised_mse(leaves.error, leaves.squares, variance) + coefficient / variance * penalty
        return Loss(loss, {TERM: coefficient, "p": coefficient.new_tensor(p)})

    @torch.no_grad()
    def after_step(self, params: SAEParameters, found: Forward, state: State, clock: Clock) -> State:
        state = SteeredRecipe.after_step(self, params, found, state, clock)
        n = self.updates_before(clock)
        norms = _pushed(state[NORMS], self.penalty(found.code, self.power(n)))
        next_norms = _pushed(state[NEXT_NORMS], self.penalty(found.code, self.power(n + 1)))
        rescale = state[RESCALE]
        if self.updates_before(clock._replace(step=clock.step + 1)) > n:
            old, new = norms.sum(), next_norms.sum()
            rescale = torch.where(new > 0, rescale * old / new, rescale)
            norms, next_norms = torch.zeros_like(norms), torch.zeros_like(norms)
        return state | {NORMS: norms, NEXT_NORMS: next_norms, RESCALE: rescale}

    def finalise(self, params: SAEParameters, state: State, rows: Rows) -> InferenceForm:
        return InferenceForm(Threshold(), theta=params.b_enc.new_zeros(()))


def _pushed(queue: Float[Tensor, " queue"], value: Float[Tensor, ""]) -> Float[Tensor, " queue"]:
    return torch.cat([value[None].to(queue.dtype), queue[:-1]])
