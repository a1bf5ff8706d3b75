"""What a recipe is: the moments of a training run at which methods differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from saelab.sae.autoencoder import SAEParameters
from saelab.training.dead import DeadFeatureTracker, aux_features
from saelab.training.forward import sparse_forward
from saelab.training.objectives import normalised_mse
from saelab.training.rates import default_lr
from saelab.training.recipes.moments import (
    AuxFeatures,
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
from saelab_kernels.rules import Rule
from saelab_kernels.select import encode_select

if TYPE_CHECKING:
    from saelab_kernels.request import Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(ABC):
    """Allocation, objective, parameter rules and state of one published method; a subclass is one file.

    Most methods are a `rule`, sometimes an `objective`, and `finalise`. A method whose forward pass is
    another one (several decodes, gates, tied weights) replaces `forward`.
    """

    name: ClassVar[str]
    traits: ClassVar[Traits] = Traits()

    @abstractmethod
    def check(self, d_sae: int) -> None:
        """Refuse options that cannot work with a dictionary of ``d_sae`` features (UsageError)."""

    def default_lr(self, width: int, steps: int) -> float:
        """Return the peak learning rate where the user gives none."""
        return default_lr(width, steps)

    def own_numbers(self, d_in: int, d_out: int, d_sae: int) -> int:
        """Return how many numbers its own parameters hold, for the memory plan; one a feature each by default."""
        return len(self.traits.own_parameters) * d_sae

    def init(self, params: SAEParameters, setup: Setup) -> State:
        """Return the recipe's own tensors before the first step; may change ``params`` in place."""
        return {}

    def prepare(self, inputs: Inputs, state: State) -> Inputs:
        """Return a batch as this recipe's forward pass and AuxK see it, for example centred."""
        return inputs

    @abstractmethod
    def rule(self, state: State, clock: Clock) -> tuple[Rule, RuleTensors]:
        """Return the allocation rule of this step."""

    def select(self, inputs: Inputs, params: SAEParameters, state: State, clock: Clock) -> Selection:
        """Encode a batch and allocate."""
        rule, tensors = self.rule(state, clock)
        return encode_select(
            inputs.encoder, params.W_enc, params.b_enc, rule, sort=False, **tensors._asdict()
        )

    def objective(self, leaves: Leaves, state: State, clock: Clock, variance: float) -> Loss:
        """Return the loss of a batch; ``variance`` is the fixed total variance of the target."""
        return Loss(normalised_mse(leaves.error, leaves.squares, variance), {})

    def forward(
        self, inputs: Inputs, params: SAEParameters, state: State, clock: Clock, variance: float
    ) -> Forward:
        """Encode, decode, and find the gradients of the leaves."""
        selection = self.select(inputs, params, state, clock)
        own = {name: state[name] for name in self.traits.own_parameters}
        return sparse_forward(
            selection, inputs, params, own, lambda leaves: self.objective(leaves, state, clock, variance)
        )

    def aux(
        self, inputs: Inputs, params: SAEParameters, tracker: DeadFeatureTracker, state: State, aux_k: int
    ) -> AuxFeatures | None:
        """Return the features that try to explain the residual (AuxK: the dead ones), or None."""
        return aux_features(inputs.encoder, params, tracker.dead, aux_k)

    @torch.no_grad()
    def after_step(self, params: SAEParameters, found: Forward, state: State, clock: Clock) -> State:
        """Return the state after the optimiser's step; ``found`` is what the step before it found."""
        return state

    @abstractmethod
    def finalise(self, params: SAEParameters, state: State, rows: Rows) -> InferenceForm:
        """Return the inference form, calibrated on frozen weights.

        Args:
            params: The trained weights, in normalised units.
            state: The recipe's state.
            rows: Gives training rows as the encoder sees them.
        """

    def to_json(self) -> dict[str, Any]:
        """Return the recipe's name and options as plain JSON values."""
        return {"name": self.name} | asdict(self)
