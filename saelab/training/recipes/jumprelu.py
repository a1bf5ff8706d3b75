"""JumpReLU: a trained threshold for each feature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.training.forward import sparse_forward
from saelab.training.objectives import normalised_mse
from saelab.training.recipes.moments import (
    Clock,
    Forward,
    InferenceForm,
    Inputs,
    Leaves,
    Loss,
    Rows,
    RuleTensors,
    Setup,
    State,
    Traits,
)
from saelab.training.sparsity_control import COEFFICIENT, TERM, SteeredRecipe, mean_l0
from saelab_kernels.code import SparseCode
from saelab_kernels.gradients import pair_products
from saelab_kernels.rules import PerBatch, Rule, Threshold
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Float, Tensor

LOG_THETA = "log_theta"
FIRST_GUESS = 0.1
START_ROWS = 8_192
SMALLEST_THETA = 1e-3
LR_SHARE = 0.6
SLOWEST = 0.25
"""Speed at the start with which all thresholds follow the error of L0; that of the control's integral is 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JumpReLU(SteeredRecipe):
    """Trained thresholds under an L0 penalty (paper: Rajamanoharan et al. 2024, arXiv 2407.14435).

    `u = x W_enc + b_enc [tokens, d_sae]`, without subtracting `b_dec`; `f = u 1[u > theta]`, theta ``[d_sae]`` above 0;
    the loss is `mean_b (|x - x_hat|^2 + coefficient * L0) / Var(x)`. Steps have no slope, so thresholds learn from
    the entries of a band around them, on the pre-activations, also below theta and also non-positive ones:

        df/dtheta  = -(theta / bandwidth) 1[|u - theta| < bandwidth / 2]
        dL0/dtheta = -(1 / bandwidth)     1[|u - theta| < bandwidth / 2]
        df/du      = 1[u > theta],  dL0/du = 0

    Trained is `log theta` (paper), here in units of ``threshold_speed``: the state's ``log_theta`` is
    `log(theta) / threshold_speed`, so that Adam moves log theta ``threshold_speed`` times as fast as the weights
    (ours: at speed 1 L0 stayed below k for a whole run of 1,171 steps, whatever the coefficient; measured).

    The paper's bandwidth and first threshold are 0.001 where `E|x|^2 = 1`, which is `0.001 sqrt(d_in)` here (0.016 for
    256). Few entries of a small batch lie in such a band, so the default is wider, and thresholds start where the
    first features are already as sparse as k asks. Ours too: `b_enc = -b_dec W_enc` at the start, so that the
    encoder first sees what lies around the geometric median. Adam's beta1 is 0 (paper); the learning rate is
    0.6 times the common default: at the full one the noise of single steps closes features while it lasts (measured).

    The coefficient is steered so that L0 reaches k (reconstruction, see `SparsityControl`), and all thresholds are
    moved together by the same error, `log theta += speed e / (integral_share * steps)` (ours): gradients move them by
    the learning rate, which is too slow in short runs and stops at the end, where L0 rises as the noise goes. The
    speed is a quarter at the start and `1/4 + 3/4 share^2` when a share of the run is done: at full speed from the
    start rare planted features are shut out for good, at a quarter to the end L0 ends above k (measured). The
    coefficient then decides which features pay. A fixed one is the paper's lambda times `d_in`, and moves no threshold
    but by its gradient. Inference is the training forward, with a threshold for each feature.
    """

    name: ClassVar[str] = "jumprelu"
    traits: ClassVar[Traits] = Traits(input_bias=False, beta1=0.0, own_parameters=(LOG_THETA,))

    l0_coefficient: float | None = None
    """A fixed coefficient of L0; steered so that L0 reaches k where not given."""
    bandwidth: float = 1.0
    """Width of the band around the thresholds, eps, in normalised units."""
    first_theta: float | None = None
    """Threshold before the first step; where not given, the one with which L0 is k."""
    threshold_speed: float = 4.0
    """How much faster than weights the logarithms of thresholds move."""

    @property
    def fixed(self) -> float | None:
        return self.l0_coefficient

    def check(self, d_sae: int) -> None:
        SteeredRecipe.check(self, d_sae)
        for name in ("bandwidth", "first_theta", "threshold_speed"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"jumprelu: {name} must be a positive number, not {value}")

    def default_lr(self, width: int, steps: int) -> float:
        return LR_SHARE * SteeredRecipe.default_lr(self, width, steps)

    def init(self, params: SAEParameters, setup: Setup) -> State:
        if not setup.warm:
            params.b_enc.copy_(-(params.b_dec @ params.W_enc))
        theta = self.first_theta or _threshold_of_l0(self.k, params, setup.inputs[:START_ROWS])
        log_theta = torch.full_like(params.b_enc, math.log(theta) / self.threshold_speed)
        return {LOG_THETA: log_theta} | self.control.start(FIRST_GUESS * setup.variance / self.k)

    def theta(self, state: State) -> Float[Tensor, " d_sae"]:
        """Return the thresholds."""
        return (state[LOG_THETA] * self.threshold_speed).exp()

    def rule(self, state: State, clock: Clock) -> tuple[Rule, RuleTensors]:
        return Threshold(), RuleTensors(theta=self.theta(state), band=self.bandwidth)

    def forward(
        self, inputs: Inputs, params: SAEParameters, state: State, clock: Clock, variance: float
    ) -> Forward:
        selection = self.select(inputs, params, state, clock)
        price = state[COEFFICIENT] / variance
        l0 = mean_l0(selection.code)

        def objective(leaves: Leaves) -> Loss:
            loss = normalised_mse(leaves.error, leaves.squares, variance)
            return Loss(loss + price * l0, {TERM: state[COEFFICIENT]})

        found = sparse_forward(selection, inputs, params, {}, objective)
        g_out = found.terms[0].g_out
        assert selection.band is not None and g_out is not None
        theta = self.theta(state)
        g_theta = threshold_gradient(
            selection.band, theta, self.bandwidth, params.W_dec, g_out, price / len(inputs.target)
        )
        return found._replace(own={LOG_THETA: g_theta * theta * self.threshold_speed})

    @torch.no_grad()
    def after_step(self, params: SAEParameters, found: Forward, state: State, clock: Clock) -> State:
        moved = SteeredRecipe.after_step(self, params, found, state, clock)
        if self.fixed is None:
            error = self.control.error(state, mean_l0(found.code), clock)
            speed = SLOWEST + (1 - SLOWEST) * min(1.0, clock.share) ** 2
            step = speed * error / (self.control.integral_share * clock.steps)
            moved = moved | {LOG_THETA: state[LOG_THETA] + step / self.threshold_speed}
        return moved

    def finalise(self, params: SAEParameters, state: State, rows: Rows) -> InferenceForm:
        return InferenceForm(Threshold(), theta=self.theta(state))


@torch.no_grad()
def threshold_gradient(
    band: SparseCode,
    theta: Float[Tensor, " d_sae"],
    bandwidth: float,
    W_dec: Float[Tensor, "d_sae d_out"],
    g_out: Float[Tensor, "tokens d_out"],
    price: Float[Tensor, ""],
) -> Float[Tensor, " d_sae"]:
    """Return the loss's straight-through gradient with respect to the thresholds (paper, equations of section 4).

    Args:
        band: Entries with `|u - theta| < bandwidth / 2`.
        theta: Thresholds.
        bandwidth: Width of the rectangle kernel.
        W_dec: Decoder rows.
        g_out: Gradient of the loss with respect to the reconstruction.
        price: What one active entry adds to the loss.
    """
    band = band.trimmed()
    columns = band.columns.long()
    each = -(theta[columns] * pair_products(band, W_dec, g_out) + price) / bandwidth
    return torch.zeros_like(theta).index_add_(0, columns, each)


def _threshold_of_l0(k: float, params: SAEParameters, x: Float[Tensor, "rows d_in"]) -> float:
    """Return the value that `k` pre-activations a row exceed on average; at least a small positive one."""
    kept = encode_select(x, params.W_enc, params.b_enc, PerBatch(k)).code.values
    return max(float(kept.min()), SMALLEST_THETA) if len(kept) else SMALLEST_THETA
