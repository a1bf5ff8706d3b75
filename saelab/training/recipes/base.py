"""What a recipe is: five moments of a training run, over named tensors of state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

from saelab.activations.statistics import HookStatistics
from saelab.sae.autoencoder import SAEParameters
from saelab_kernels.code import SparseCode
from saelab_kernels.rules import Rule
from saelab_kernels.shapes import Float, Tensor

State = dict[str, Tensor]
"""A recipe's own tensors; they are checkpointed and never hidden elsewhere."""


class RuleTensors(NamedTuple):
    """The tensors that an allocation rule needs beside it."""

    budgets: Tensor | None = None
    theta: Tensor | None = None
    scale: Tensor | None = None


class Leaves(NamedTuple):
    """The small tensors over which autograd runs in a step; every objective is a function of them."""

    target: Float[Tensor, "tokens d_out"]
    """What is to be reconstructed, in normalised units; needs no gradient."""
    error: Float[Tensor, "tokens d_out"]
    """`x_hat - target`; its gradient, which is that of the reconstruction, is handed to the kernels."""
    squares: Float[Tensor, " tokens"]
    """`|error|^2` of each token, computed with it; no leaf."""
    code: SparseCode
    """The allocated code; the gradient of ``code.values`` is handed to the kernels."""


class Loss(NamedTuple):
    """An objective's value and its parts."""

    total: Float[Tensor, ""]
    """What is minimised."""
    terms: dict[str, Tensor]
    """Parts that are logged by name, 0-dimensional, detached."""


class InferenceForm(NamedTuple):
    """How the finished SAE allocates."""

    rule: Rule
    theta: Tensor | None = None
    """Threshold that the rule uses, in normalised units."""
    optional_theta: Tensor | None = None
    """A calibrated threshold that the rule does not use but readers may want, in normalised units."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(ABC):
    """Allocation, objective and state of one published method; a subclass is one file."""

    name: ClassVar[str]

    def init(self, params: SAEParameters, statistics: HookStatistics) -> State:
        """Return the recipe's own tensors before the first step."""
        return {}

    @abstractmethod
    def rule(self, state: State, step: int) -> tuple[Rule, RuleTensors]:
        """Return the allocation rule of this step."""

    @abstractmethod
    def objective(self, leaves: Leaves, state: State, variance: float) -> Loss:
        """Return the loss of a batch; ``variance`` is the fixed total variance of the target."""

    def after_step(self, params: SAEParameters, code: SparseCode, state: State, step: int) -> State:
        """Return the state after the optimiser's step."""
        return state

    @abstractmethod
    def finalise(
        self, params: SAEParameters, state: State, encoder_inputs: Callable[[int], Iterable[Tensor]]
    ) -> InferenceForm:
        """Return the inference form, calibrated on frozen weights.

        Args:
            params: The trained weights, in normalised units.
            state: The recipe's state.
            encoder_inputs: Given a number of rows, yields about so many of what the encoder sees, in
                batches ``[tokens, d_in]`` that are spread over all training rows.
        """

    @abstractmethod
    def check(self, d_sae: int) -> None:
        """Refuse options that cannot work with a dictionary of ``d_sae`` features (UsageError)."""

    def to_json(self) -> dict[str, Any]:
        """Return the recipe's name and options as plain JSON values."""
        return {"name": self.name} | asdict(self)
