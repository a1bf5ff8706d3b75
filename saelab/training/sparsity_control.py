"""The coefficient of a sparsity penalty, steered so that the measured L0 reaches a target."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch

from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.training.recipes.base import Recipe
from saelab.training.recipes.moments import Clock, Forward, RuleTensors, State
from saelab_kernels.code import SparseCode
from saelab_kernels.rules import Rule, Threshold
from saelab_kernels.shapes import Float, Tensor

COEFFICIENT, FIRST, INTEGRAL = "coefficient", "first_log_l0", "log_integral"
TERM = "sparsity_coefficient"
"""The name under which recipes log the coefficient."""

LARGEST_ERROR = 1.0
SMALLEST_L0 = 1e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class SparsityControl:
    """Steers the coefficient of a penalty (reconstruction: papers sweep fixed coefficients instead).

    With `e = log(L0 / path)`, cut to [-1, 1], after every step

        log_integral += e / (integral_share * steps)
        coefficient   = exp(log_integral + gain * e)

    a proportional and integral controller of the logarithm of the coefficient. ``path`` is not the target
    itself: it leads from the first batch's L0, in equal factors, to the target over ``approach_share`` of the
    run. A run starts with half of all pairs active; aiming at the target at once, the integral would
    grow for as long as the weights need to follow and end far above its place. Times are shares of the
    run's first length, since the default learning rate, which sets how fast weights follow, falls with it.

    A fixed coefficient rises linearly from 0 over ``ramp_share`` of the run (paper: Anthropic's update of
    April 2024) and is not steered. All state is tensors on one device; nothing waits for it.
    """

    k: float
    """Target mean number of active features per token."""
    fixed: float | None
    """A coefficient that is used as it is, with k ignored; steered where not given."""
    gain: float = 1.0
    """Weight of the present error."""
    integral_share: float = 0.02
    """Share of the run in which an error of one (a factor e in L0) changes the integral by one."""
    approach_share: float = 0.15
    """Share of the run in which L0 is led to the target."""
    ramp_share: float = 0.05
    """Share of the run in which a fixed coefficient rises."""

    def start(self, coefficient: float) -> State:
        """Return the state before the first step, with a first guess of the coefficient."""
        first = 0.0 if self.fixed is not None else coefficient
        return {
            COEFFICIENT: torch.tensor(first),
            FIRST: torch.zeros(()),
            INTEGRAL: torch.tensor(math.log(coefficient)),
        }

    @torch.no_grad()
    def error(self, state: State, l0: Float[Tensor, ""], clock: Clock) -> Float[Tensor, ""]:
        """Return how far the logarithm of L0 is above its path, cut to [-1, 1]."""
        first = _log(l0) if clock.step == 0 else state[FIRST]
        done = min(1.0, clock.step / max(1.0, self.approach_share * clock.steps))
        path = first + done * (math.log(self.k) - first)
        return (_log(l0) - path).clamp(-LARGEST_ERROR, LARGEST_ERROR)

    @torch.no_grad()
    def after(self, state: State, l0: Float[Tensor, ""], clock: Clock) -> State:
        """Return what changes in the state after a step.

        Args:
            state: Holds what `start` gave.
            l0: Mean number of active features per token in the step's batch.
            clock: Of the step that was done.
        """
        if self.fixed is not None:
            share = (clock.step + 1) / max(1.0, self.ramp_share * clock.steps)
            return {COEFFICIENT: torch.full_like(state[COEFFICIENT], self.fixed * min(1.0, share))}
        first = state[FIRST] if clock.step else _log(l0).to(state[FIRST].dtype)
        error = self.error(state | {FIRST: first}, l0, clock)
        integral = state[INTEGRAL] + error / (self.integral_share * clock.steps)
        return {COEFFICIENT: (integral + self.gain * error).exp(), FIRST: first, INTEGRAL: integral}


def _log(l0: Float[Tensor, ""]) -> Float[Tensor, ""]:
    return l0.clamp_min(SMALLEST_L0).log()


def mean_l0(code: SparseCode) -> Float[Tensor, ""]:
    """Return the mean number of values above 0 per token, without waiting for the device."""
    return code.firing_counts().sum().float() / max(code.n_rows, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class SteeredRecipe(Recipe):
    """A recipe whose sparsity comes from a penalty: `(|x - x_hat|^2 + coefficient * penalty) / Var(x)`.

    Coefficients are in the units of squared norms of normalised activations, where `E|x|^2 = d_in` with the
    default normalisation; they are logged as ``sparsity_coefficient``. The state of the control is a part of the
    recipe's state.
    """

    k: float = 32
    """Target mean number of active features per token; ignored with a fixed coefficient."""

    @property
    @abstractmethod
    def fixed(self) -> float | None:
        """The fixed coefficient, where the user gives one."""

    @property
    def control(self) -> SparsityControl:
        """How the coefficient moves."""
        return SparsityControl(k=self.k, fixed=self.fixed)

    def check(self, d_sae: int) -> None:
        if not 0 < self.k <= d_sae:
            raise UsageError(f"{self.name}: k must be above 0 and at most the width {d_sae}, not {self.k}")
        if self.fixed is not None and not 0 <= self.fixed < math.inf:
            raise UsageError(
                f"{self.name}: a fixed coefficient must be finite and at least 0, not {self.fixed}; "
                "leave it out to steer L0 to k"
            )

    def rule(self, state: State, clock: Clock) -> tuple[Rule, RuleTensors]:
        return Threshold(), RuleTensors(theta=state[COEFFICIENT].new_zeros(()))

    @torch.no_grad()
    def after_step(self, params: SAEParameters, found: Forward, state: State, clock: Clock) -> State:
        return state | self.control.after(state, mean_l0(found.code), clock)
