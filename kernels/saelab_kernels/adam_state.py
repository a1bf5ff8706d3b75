"""What the fused optimiser works on: four weights, their moments, and how they are to move."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from saelab_kernels.layout import is_feature_major
from saelab_kernels.shapes import Float, Tensor

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """The four tensors of a sparse autoencoder, or something of the same shapes for each of them."""

    W_enc: Float[Tensor, "d_in d_sae"]
    """The transpose of a contiguous `[d_sae, d_in]` tensor."""
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]

    def __post_init__(self) -> None:
        if not is_feature_major(self.W_enc) or not self.W_dec.is_contiguous():
            raise ValueError(
                "Weights: W_enc must be feature-major (layout.feature_major_like), W_dec contiguous"
            )

    def named(self) -> dict[str, Tensor]:
        """The tensors by their names."""
        return {name: getattr(self, name) for name in NAMES}

    def zeros_like(self) -> Weights:
        """Zeros of the same shapes, dtypes, devices and memory order."""
        return Weights(
            W_enc=torch.zeros_like(self.W_enc.t(), memory_format=torch.contiguous_format).t(),
            b_enc=torch.zeros_like(self.b_enc),
            W_dec=torch.zeros_like(self.W_dec),
            b_dec=torch.zeros_like(self.b_dec),
        )


@dataclass(frozen=True, slots=True)
class AdamOptions:
    """How the weights move (Adam: Kingma and Ba 2015, arXiv 1412.6980)."""

    beta1: float = 0.9
    """Decay of the mean of the gradient."""
    beta2: float = 0.999
    """Decay of the mean of its square."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    clip: float | None = None
    """Largest norm of the gradient of all weights together, after the projection; None leaves it as it is."""
    unit_rows: bool = True
    """Keep the rows of `W_dec` at norm 1: project the gradient onto the sphere, renormalise after the step."""
    input_bias: bool = True
    """Whether the encoder's input is `x - b_dec`, so that `b_dec` also acts through the encoder."""

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and 0 < self.eps < math.inf):
            raise ValueError(
                f"AdamOptions: betas must lie in [0, 1) and eps above 0, not {self.beta1}, {self.beta2}, {self.eps}"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"AdamOptions: clip must be above 0 or None, not {self.clip}")


@dataclass(slots=True, eq=False)
class AdamState:
    """The moments of one optimiser; `workspace` is no part of what must be saved."""

    exp_avg: Weights
    """Running mean of the (projected, clipped) gradient."""
    exp_avg_sq: Weights
    """Running mean of its square."""
    steps: Float[Tensor, ""]
    """float32 on the weights' device; steps done, so that a captured step can count."""
    workspace: dict[str, Tensor] = field(default_factory=dict)
    """Memory that a backend keeps from one step to the next, by names of its own."""

    @classmethod
    def new(cls, weights: Weights) -> AdamState:
        """Zero moments."""
        steps = torch.zeros((), dtype=torch.float32, device=weights.W_dec.device)
        return cls(weights.zeros_like(), weights.zeros_like(), steps)
