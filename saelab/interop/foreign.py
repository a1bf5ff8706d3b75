"""An SAE of any tool, described completely: what every reader makes and nothing else reads files for.

`x' = scaled x` (`x' - b_dec` where it says so) `-> z = x' W_enc + b_enc -> keep -> y = z W_dec + b_dec -> un-scaled`,
with `+ x W_skip` of the raw input. All in the foreign units, as their own code computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from saelab.errors import DamagedFileError
from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True)
class Keep:
    """Which pre-activations become activations; the others, and all that are not above 0, are 0."""

    kind: Literal["relu", "topk", "threshold"]
    """Everything above 0; the k largest of a token; everything above a threshold."""
    k: int | None = None
    """For ``topk``."""
    theta: Tensor | None = None
    """For ``threshold``: one number or ``[d_sae]``, float32, in the units of ``z``, or of ``z |W_dec_i|``:"""
    by_decoder_norm: bool = False
    """whether ``z |W_dec_i|`` is ranked or compared instead of ``z``."""


@dataclass(frozen=True)
class Scaling:
    """How activations are scaled before the encoder, and reconstructions back."""

    kind: Literal["constant", "layer_norm", "unit_norm"] = "constant"
    """One number; each token by its mean and standard deviation; each token by its norm."""
    factor: float = 1.0
    """``constant``: the number; ``unit_norm``: the norm that tokens are given."""
    target_factor: float = 1.0
    """``constant``: the number that what is reconstructed was multiplied by."""
    back: bool = True
    """Per token: whether reconstructions are scaled back with the input's scale (not in some transcoders)."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an SAE was trained, as its own files say it; None where they are silent."""

    hook: str | None = None
    """What it reads, in any spelling."""
    target_hook: str | None = None
    """What it reconstructs, where that is another place."""
    model: str | None = None
    """Name of the language model."""
    context: int | None = None
    """Tokens in a row of its training text."""


@dataclass(frozen=True, kw_only=True)
class ForeignSAE:
    """What was read."""

    architecture: str
    """What the format calls this kind of SAE."""
    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    W_skip: Float[Tensor, "d_in d_out"] | None = None
    keep: Keep
    apply_b_dec_to_input: bool
    """Whether the encoder sees ``x' - b_dec``."""
    scaling: Scaling = Scaling()
    is_transcoder: bool = False
    """Whether it reconstructs another place than it reads."""
    place: Place
    recipe: str
    """The name that we have for this kind of SAE."""
    notes: tuple[str, ...] = ()
    """What of the original is left behind or doubtful."""

    def __post_init__(self) -> None:
        d_sae = self.W_enc.shape[1]
        if self.keep.k is not None and not 1 <= self.keep.k <= d_sae:
            raise DamagedFileError(f"topk with k = {self.keep.k} and {d_sae:,} features cannot be")


def gated_keep(
    b_gate: Float[Tensor, " d_sae"], b_mag: Float[Tensor, " d_sae"], r_mag: Float[Tensor, " d_sae"]
) -> Keep:
    """Return the threshold on magnitudes that a gate with shared weights is (derived).

    With `p = x W`, `z = p exp(r) + b_mag`, the gate `p + b_gate > 0` is `z > b_mag - b_gate exp(r)`: the encoder is
    `W exp(r)` with the bias b_mag.
    """
    return Keep("threshold", theta=(b_mag.double() - b_gate.double() * r_mag.double().exp()).float())
