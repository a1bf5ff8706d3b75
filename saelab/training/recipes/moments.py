"""What passes between the training loop and a recipe at each moment of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from saelab.sae.autoencoder import SAEParameters
from saelab_kernels.adam_state import Weights
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.code import SparseCode
from saelab_kernels.request import Attribution, Selection
from saelab_kernels.rules import Rule
from saelab_kernels.shapes import Float, Tensor

State = dict[str, Tensor]
"""A recipe's own tensors, its own trained parameters among them; they are checkpointed and never hidden elsewhere."""

Rows = Callable[[int], Iterable[Float[Tensor, "tokens d_in"]]]
"""Given a number of rows, yields about so many of what the encoder sees, in batches spread over all training rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """What a recipe asks of the weights, the optimiser and the data; the same for every run of it."""

    input_bias: bool = True
    """Whether the encoder sees ``x - b_dec``."""
    unit_rows: bool = True
    """Keep decoder rows at norm 1: project their gradients, renormalise after the step."""
    beta1: float = 0.9
    """Adam's decay of the mean of the gradient."""
    beta2: float = 0.999
    """Adam's decay of the mean of its square."""
    held_gradients: bool = False
    """Whether gradient matrices are kept, so that `Forward.adjust` can change them before Adam; slower, more memory."""
    trained: tuple[str, ...] = ("W_enc", "b_enc", "W_dec", "b_dec")
    """Weights that Adam moves; fewer only with held gradients."""
    own_parameters: tuple[str, ...] = ()
    """Tensors of the state that Adam moves too, with the gradients in `Forward.own`."""
    aux: bool = True
    """Whether AuxK brings dead features back, as the configuration says; off where the recipe revives its own."""
    normalisation: Literal["scale", "none", "layer_norm", "unit_norm"] = "scale"
    """How activations are scaled where the user does not say."""
    allowed_normalisations: tuple[str, ...] = ("scale", "none", "layer_norm", "unit_norm")
    """Scalings under which the method is defined."""
    hooks: Literal["one", "input and target", "several"] = "one"
    """An autoencoder of one hookpoint, a map from one to another, or one dictionary for several."""
    loss_gradients: bool = False
    """Whether it needs the gradients of the model's loss beside the activations."""
    warm_start: bool = True
    """Whether a finished SAE's weights are weights that it can go on from."""


class Clock(NamedTuple):
    """Where in its run a step is; shares count the run's first length, so that an extension changes nothing."""

    step: int
    """Steps done before this one."""
    steps: int
    """Steps of the run's first length."""
    batch: int
    """Tokens in a step."""

    @property
    def share(self) -> float:
        """Share of the run that is done; above 1 in an extension."""
        return self.step / self.steps


class Setup(NamedTuple):
    """What a recipe may know before the first step; all in normalised units."""

    clock: Clock
    """At step 0."""
    d_in: int
    d_out: int
    d_sae: int
    variance: float
    """Total variance of the target."""
    inputs: Float[Tensor, "rows d_in"]
    """A sample of the inputs, before ``b_dec`` is subtracted; on the host."""
    targets: Float[Tensor, "rows d_out"]
    """The targets of the same tokens."""
    input_widths: tuple[int, ...]
    """Widths of the hookpoints that are joined in the input."""
    seed: int
    """Seed of the weights."""
    warm: bool = False
    """Whether the weights are those of a finished SAE."""


class Inputs(NamedTuple):
    """One batch in normalised units."""

    encoder: Float[Tensor, "tokens d_in"]
    """What the encoder sees: the input, minus ``b_dec`` where `Traits.input_bias` says so."""
    target: Float[Tensor, "tokens d_out"]
    """What is to be reconstructed."""
    gradients: Float[Tensor, "tokens d_out"] | None = None
    """Gradients of the model's summed loss at the target; given where `Traits.loss_gradients` asks for them."""


class RuleTensors(NamedTuple):
    """What an allocation rule needs beside it, and what else the selection is to return."""

    budgets: Tensor | None = None
    theta: Tensor | None = None
    scale: Tensor | None = None
    attribution: Attribution | None = None
    band: float = 0.0
    boundary: bool = False


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
    own: dict[str, Tensor]
    """The recipe's own parameters."""


class Loss(NamedTuple):
    """An objective's value and its parts."""

    total: Float[Tensor, ""]
    """What is minimised."""
    terms: dict[str, Tensor]
    """Parts that are logged by name, 0-dimensional, detached."""


class Forward(NamedTuple):
    """What a forward and backward pass over the leaves found: all that the optimiser and the loop go on from."""

    selection: Selection
    """What the encoder kept."""
    code: SparseCode
    """The code that was decoded; a feature fired where its value is above 0."""
    error: Float[Tensor, "tokens d_out"]
    """`x_hat - target`, detached."""
    squares: Float[Tensor, " tokens"]
    """`|error|^2` of each token."""
    loss: Loss
    """Detached."""
    terms: list[GradientTerm]
    """Each decode with the gradient of what came out."""
    own: dict[str, Tensor]
    """Gradients of the recipe's own parameters."""
    adjust: Callable[[Weights], None] | None = None
    """Changes the held gradients, which the terms (AuxK among them) have filled, in place; only with held gradients."""


class AuxFeatures(NamedTuple):
    """Some features with their weights, and what they make of a batch: they try to explain the residual."""

    features: Tensor
    """int64 ``[n]``; their numbers."""
    W_dec: Float[Tensor, "n d_out"]
    """Their decoder rows."""
    code: SparseCode
    """Their code, whose columns count them alone."""
    weights: Float[Tensor, " n"] | None = None
    """Factor of each one's values in the decode; 1 where not given."""


class InferenceForm(NamedTuple):
    """How the finished SAE encodes, in normalised units."""

    rule: Rule
    theta: Tensor | None = None
    """Threshold that the rule uses, a number or ``[d_sae]``."""
    optional_theta: Tensor | None = None
    """A calibrated threshold that the rule does not use but readers may want."""
    params: SAEParameters | None = None
    """Weights of this form where they are not the trained ones (folded norms, gates, tied scales)."""
    W_skip: Float[Tensor, "d_in d_out"] | None = None
    """Linear part beside the features, of skip-transcoders."""
    attribution: dict[str, float | str | None] | None = None
    """``beta``, ``mode``, ``norm`` and ``mean_c`` of g-SAE's score, for encoding where gradients are given; ``mean_c``
    is in the units of `Inputs.gradients`, None where c is divided by its mean over the token."""
