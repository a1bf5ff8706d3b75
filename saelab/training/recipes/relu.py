"""ReLU with an L1 penalty and free decoder norms."""

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
    Setup,
    State,
    Traits,
)
from saelab.training.sparsity_control import COEFFICIENT, TERM, SteeredRecipe
from saelab_kernels.adam_state import Weights
from saelab_kernels.rules import Threshold
from saelab_kernels.shapes import Float, Tensor

FIRST_GUESS = 0.05
SMALLEST_NORM = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class ReLU(SteeredRecipe):
    """ReLU features under an L1 penalty (Anthropic's update of April 2024; from general knowledge of the field).

    `f = ReLU(x W_enc + b_enc) [tokens, d_sae]`, without subtracting `b_dec`; `x_hat = f W_dec + b_dec`; the loss is
    `mean_b (|x - x_hat|^2 + coefficient * sum_i f_i |W_dec[i]|) / Var(x)`. Decoder norms are free: the weighting
    by them is what keeps the penalty from being made small by large rows, and gives row i the further gradient
    `coefficient * (sum_b f_bi) * W_dec[i] / |W_dec[i]| / (tokens Var)` (derived).

    Start (reference code: dictionary_learning, SAELens): random decoder rows of norm 0.1, `W_enc = W_dec^T`. Ours:
    `b_dec` is the geometric median and `b_enc = -b_dec W_enc`, so that the encoder first sees what lies around it,
    where the reference has zeros. A finished SAE's weights are taken as they are.

    The coefficient is steered so that L0 reaches k (reconstruction, see `SparsityControl`); papers fix it, at
    about 5 in these units. AuxK cannot bring a dead feature back, since one that is dead here has no value above 0.

    Inference is the training forward: norms are folded, so that decoder rows have norm 1, and the threshold is 0.
    """

    name: ClassVar[str] = "relu"
    traits: ClassVar[Traits] = Traits(input_bias=False, unit_rows=False, held_gradients=True, aux=False)

    l1_coefficient: float | None = None
    """A fixed coefficient of the penalty; steered so that L0 reaches k where not given."""
    first_norm: float = 0.1
    """Norm of the decoder rows, and of the encoder's, before the first step."""

    @property
    def fixed(self) -> float | None:
        return self.l1_coefficient

    def check(self, d_sae: int) -> None:
        SteeredRecipe.check(self, d_sae)
        if not 0 < self.first_norm < math.inf:
            raise UsageError(f"relu: first_norm must be a positive number, not {self.first_norm}")

    def init(self, params: SAEParameters, setup: Setup) -> State:
        if not setup.warm:
            params.W_enc.mul_(self.first_norm)
            params.W_dec.mul_(self.first_norm)
            params.b_enc.copy_(-(params.b_dec @ params.W_enc))
        return self.control.start(FIRST_GUESS * setup.variance**0.5)

    def forward(
        self, inputs: Inputs, params: SAEParameters, state: State, clock: Clock, variance: float
    ) -> Forward:
        selection = self.select(inputs, params, state, clock)
        norms = _row_norms(params)
        price = state[COEFFICIENT] / (variance * len(inputs.target))

        def objective(leaves: Leaves) -> Loss:
            l1 = (leaves.code.values * norms[leaves.code.columns.long()]).sum()
            loss = normalised_mse(leaves.error, leaves.squares, variance) + price * l1
            return Loss(loss, {TERM: state[COEFFICIENT]})

        found = sparse_forward(selection, inputs, params, {}, objective)
        columns, values = found.code.columns.long(), found.code.values
        sums = torch.zeros_like(norms).index_add_(0, columns, values)

        def adjust(gradients: Weights) -> None:
            gradients.W_dec.addcmul_(params.W_dec, (price * sums / norms)[:, None])

        return found._replace(adjust=adjust)

    def finalise(self, params: SAEParameters, state: State, rows: Rows) -> InferenceForm:
        norms = _row_norms(params)
        folded = SAEParameters(
            W_enc=params.W_enc * norms,
            b_enc=params.b_enc * norms,
            W_dec=params.W_dec / norms[:, None],
            b_dec=params.b_dec,
        )
        return InferenceForm(Threshold(), theta=norms.new_zeros(()), params=folded)


def _row_norms(params: SAEParameters) -> Float[Tensor, " d_sae"]:
    return torch.linalg.vector_norm(params.W_dec.detach(), dim=1).clamp_min(SMALLEST_NORM)
