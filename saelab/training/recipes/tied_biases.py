"""Tied weights, and biases that follow how often features fire: what the forms of bias adaptation share."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.training.bias_groups import BiasStep, Firing, FrequencyRange, adapted_biases, peaks_of
from saelab.training.rates import default_lr
from saelab.training.recipes.base import Recipe
from saelab.training.recipes.moments import (
    Clock,
    Forward,
    InferenceForm,
    Inputs,
    Rows,
    RuleTensors,
    Setup,
    State,
    Traits,
)
from saelab_kernels.adam_state import Weights
from saelab_kernels.rules import PerFeature, Rule, Threshold
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Float, Tensor

SCALE, BIAS, FLOOR = "a", "b", "floor"
COUNTS, PEAKS, TOKENS = "counts", "peaks", "tokens"
BUFFER = (COUNTS, PEAKS, TOKENS)
UPDATES_IN_A_RUN = 400
FIRINGS_IN_A_BUFFER = 5
START_TOKENS = 8_192


@dataclass(frozen=True, kw_only=True, slots=True)
class TiedBiases(Recipe):
    """The model and the training of bias adaptation; a subclass says which frequencies features aim at.

    With unit rows `w_m` (`W_enc = W^T` in memory), a centre c (`b_dec`) and an output scale a:

        u = (x - c) W^T [tokens, d_sae],   z = u * 1[u + b > 0],   x_hat = (a * z) W + c

    (paper: Chen et al. 2025, arXiv 2506.14002, whose experiments use this jump form; that the values leave out
    the bias is derived from reviews of it). `W_dec` holds `a_m w_m`, made anew after each step, so that
    `dL/dW = a dW_dec + dW_enc^T` and `dL/da = rowsum(W * dW_dec)`. W and a are moved by Adam and rows of W
    renormalised. **The biases have no gradient**: every `adapt_every` steps `saelab.training.bias_groups` moves them
    by how often each feature fired, and there is no sparsity penalty and no AuxK. The loss is the normalised squared
    error, `2 / Var(x)` times the paper's `1/2 mean |x - x_hat|^2`: a factor that Adam does not see.

    Inference is a threshold for each feature: encoder column and threshold `-b` are multiplied by `|a|`, decoder
    rows are `sign(a) w`, of norm 1 (derived).
    """

    traits: ClassVar[Traits] = Traits(
        unit_rows=False,
        held_gradients=True,
        trained=("W_enc", "b_dec"),
        own_parameters=(SCALE,),
        aux=False,
        normalisation="unit_norm",
        warm_start=False,
    )

    k: float = 32.0
    """Ceiling of the mean number of active features per token; sets the frequencies where none are given."""
    gamma: float = 0.01
    """Share of the largest pre-activation by which an adaptation moves a bias, down or up (paper)."""
    epsilon: float = 1e-6
    """Share of the tokens below which a feature counts as dead, in effect not once (paper's public implementation)."""
    adapt_every: int | None = None
    """Steps between adaptations; where not given 400 adaptations a run, or fewer, so that a buffer holds 5 firings of
    the rarest group (measured on planted data: 60 adaptations are too few, 280 enough)."""
    centre: Literal["median", "zero", "trained"] = "median"
    """What is subtracted first: the geometric median, fixed; nothing; or a bias trained from nothing."""
    start: Literal["target", "zero"] = "target"
    """First biases: where features fire as often as they may (ours), or 0, where half of them fire (paper)."""
    scale: Literal["trained", "fixed"] = "trained"
    """Whether the output scales a are trained or stay at 1."""

    @abstractmethod
    def frequencies(self, d_sae: int) -> FrequencyRange:
        """Return the groups and their target frequencies."""

    def check(self, d_sae: int) -> None:
        if not 0 < self.k <= d_sae:
            raise UsageError(f"{self.name}: k must be above 0 and at most the width {d_sae}, not {self.k}")
        if not 0 < self.gamma < 1:
            raise UsageError(f"{self.name}: gamma must be between 0 and 1, not {self.gamma}")
        if self.adapt_every is not None and self.adapt_every < 1:
            raise UsageError(f"{self.name}: adapt_every must be at least 1, not {self.adapt_every}")
        _, highest, lowest = self.frequencies(d_sae)
        if not 0 < lowest <= highest <= 1:
            raise UsageError(
                f"{self.name}: target frequencies from {highest:.3g} down to {lowest:.3g} must fall and lie in (0, 1]; "
                f"k {self.k:g} may be too large for the width {d_sae}"
            )
        if not 0 <= self.epsilon < lowest:
            raise UsageError(
                f"{self.name}: epsilon must be at least 0 and below the lowest target frequency {lowest:.3g}, "
                f"not {self.epsilon:g}"
            )

    def default_lr(self, width: int, steps: int) -> float:
        """Return twice the common rule (measured: 4,096 features, 488 steps on the embedded model)."""
        return 2 * default_lr(width, steps)

    def init(self, params: SAEParameters, setup: Setup) -> State:
        if self.centre != "median":
            params.b_dec.zero_()
        centred = setup.inputs - params.b_dec
        d_sae = setup.d_sae
        return {
            SCALE: torch.ones(d_sae),
            BIAS: torch.zeros(d_sae) if self.start == "zero" else self._biases_at_targets(params, centred),
            # No row of norm 1 has a larger pre-activation than the norm of its input.
            FLOOR: -torch.linalg.vector_norm(centred, dim=1).max(),
            COUNTS: torch.zeros(d_sae, dtype=torch.int64),
            PEAKS: torch.zeros(d_sae),
            TOKENS: torch.zeros((), dtype=torch.int64),
        }

    def _biases_at_targets(
        self, params: SAEParameters, centred: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, " d_sae"]:
        """Return minus the pre-activation that each feature exceeds on its target share of a sample."""
        d_sae = params.W_dec.shape[0]
        frequencies, sample = self.frequencies(d_sae), centred[:START_TOKENS]
        share = frequencies.targets()[frequencies.group_of(d_sae)]
        budgets = (share * len(sample)).ceil().long().clamp_max(len(sample))
        found = encode_select(
            sample, params.W_enc, params.b_enc, PerFeature(), budgets=budgets, boundary=True
        )
        assert found.boundary is not None
        return -found.boundary

    def rule(self, state: State, clock: Clock) -> tuple[Rule, RuleTensors]:
        return Threshold(), RuleTensors(theta=-state[BIAS])

    def forward(
        self, inputs: Inputs, params: SAEParameters, state: State, clock: Clock, variance: float
    ) -> Forward:
        found = Recipe.forward(self, inputs, params, state, clock, variance)
        # The scale's gradient is known once the buffers are filled: `adjust` writes it, before the scale is moved.
        of_scale = torch.zeros_like(state[SCALE])

        def adjust(gradients: Weights) -> None:
            self._tie(gradients, params, state[SCALE], of_scale)

        return found._replace(own={SCALE: of_scale}, adjust=adjust)

    def _tie(self, gradients: Weights, params: SAEParameters, a: Tensor, of_scale: Tensor) -> None:
        if self.scale == "trained":
            of_scale.copy_((params.W_enc.t() * gradients.W_dec).sum(1))
        gradients.W_enc.t().addcmul_(a[:, None], gradients.W_dec)
        if self.centre != "trained":
            gradients.b_dec.zero_()

    @torch.no_grad()
    def after_step(self, params: SAEParameters, found: Forward, state: State, clock: Clock) -> State:
        rows = params.W_enc.t()
        rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        torch.mul(rows, state[SCALE][:, None], out=params.W_dec)
        state[COUNTS] += found.code.firing_counts()
        torch.maximum(state[PEAKS], peaks_of(found.code), out=state[PEAKS])
        state[TOKENS] += found.code.n_rows
        if (clock.step + 1) % self.interval(len(state[BIAS]), clock) == 0:
            self._adapt(state)
        return state

    def interval(self, d_sae: int, clock: Clock) -> int:
        """Return the steps between two adaptations."""
        if self.adapt_every is not None:
            return self.adapt_every
        needed = FIRINGS_IN_A_BUFFER / (self.frequencies(d_sae).lowest * clock.batch)
        return max(1, clock.steps // UPDATES_IN_A_RUN, math.ceil(needed))

    def _adapt(self, state: State) -> None:
        b = state[BIAS]
        firing = Firing(*(state[name] for name in BUFFER))
        step = BiasStep(self.gamma, self.epsilon, state[FLOOR])
        b.copy_(adapted_biases(b, firing, self.frequencies(len(b)), step))
        for name in BUFFER:
            state[name].zero_()

    def finalise(self, params: SAEParameters, state: State, rows: Rows) -> InferenceForm:
        a, directions = state[SCALE][:, None], params.W_enc.t()
        exported = SAEParameters(
            W_enc=(a.abs() * directions).t(),
            b_enc=params.b_enc,
            W_dec=directions.where(a >= 0, -directions),
            b_dec=params.b_dec,
        )
        return InferenceForm(Threshold(), theta=-state[BIAS] * state[SCALE].abs(), params=exported)
