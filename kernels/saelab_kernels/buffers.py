"""What gradients are asked for, and the memory that they are written to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from saelab_kernels.code import SparseCode
from saelab_kernels.layout import is_feature_major
from saelab_kernels.shapes import Float, Int, Tensor

Parts = Literal["both", "encoder", "decoder"]
"""Which weights' gradients are wanted; the others' buffers are left alone."""


@dataclass(frozen=True, slots=True, eq=False)
class GradientTerm:
    """One decode of a code, with the gradient of the loss with respect to what came out.

    A loss may have several: the reconstruction, AuxK's reconstruction by dead features, prefixes.
    """

    code: SparseCode
    """The code that was decoded."""
    x: Float[Tensor, "rows d_in"]
    """The encoder's input, as given to `encode_select`."""
    g_out: Float[Tensor, "rows d_out"] | None
    """dL/dx_hat; None if the loss does not depend on the reconstruction."""
    g_values: Float[Tensor, "*entries"] | None = None
    """Direct dL/dvalues (a sparsity penalty), the shape of `code.values`; added before the mask."""
    adds_b_dec: bool = True
    """Whether `b_dec` was added to this reconstruction."""
    features: Int[Tensor, " n"] | None = None
    """int64, distinct; where the code's columns count these features of the weights only (AuxK: the dead ones,
    encoded and decoded with their rows), so that its `d_sae` is their number. None: all features."""

    def among_all(self, d_sae: int) -> GradientTerm:
        """The same term with a code whose columns count all `d_sae` features."""
        if self.features is None:
            return self
        columns = self.features[self.code.columns.long()].to(torch.int32)
        return replace(self, code=replace(self.code, columns=columns, d_sae=d_sae), features=None)


@dataclass(frozen=True, slots=True, eq=False)
class GradientBuffers:
    """Memory for gradients, kept over the steps: fresh tensors cost more than filling them."""

    W_enc: Float[Tensor, "d_in d_sae"]
    """The transpose of a contiguous `[d_sae, d_in]` tensor."""
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]

    def __post_init__(self) -> None:
        if not is_feature_major(self.W_enc) or not self.W_dec.is_contiguous():
            raise ValueError(
                "GradientBuffers: W_enc must be feature-major (layout.feature_major_like), W_dec contiguous"
            )

    @classmethod
    def for_shapes(
        cls,
        d_in: int,
        d_sae: int,
        d_out: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> GradientBuffers:
        """Zero-filled buffers."""
        return cls(
            W_enc=torch.zeros(d_sae, d_in, dtype=dtype, device=device).t(),
            b_enc=torch.zeros(d_sae, dtype=dtype, device=device),
            W_dec=torch.zeros(d_sae, d_out, dtype=dtype, device=device),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """Gradients of a scalar loss. The weights' ones are the buffers' tensors where buffers were given."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    values: Float[Tensor, "*entries"]
    """dL/dvalues in the shape of the code's values, 0 where the value is not above 0; this call's only."""
