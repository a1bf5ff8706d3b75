"""How a selection is cut into matrix products: the choices, and the operands that they are made of.

The products are torch's (cuBLAS). Each writes one tile of pre-activations into the same buffer, which is small
enough to stay in the L2 cache, where a kernel reads it before the next one overwrites it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from saelab_kernels.backends.triton.launch import sum_dtype
from saelab_kernels.request import SelectRequest
from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectPlan:
    """Sizes and precision of a selection. None was measured on a GPU; the sizes are from its data sheet."""

    precision: Literal["rescored", "full"] = "rescored"
    """`rescored`: `PerToken` finds candidates in bfloat16 and ranks them in float32; `full`: products in the dtype of
    the weights. Other rules and attributions always use `full`, as does float64."""
    sigmas: float = 6.0
    """How far a sum of bfloat16 rounding errors is allowed to stray, see `select_bound`; `math.inf` stands for the
    worst case, a theorem, at the price of several times as many candidates."""
    height: int = 2048
    """Rows of every product. Fixed, with the last tile padded, so that a row's result is the same in any batch."""
    tile_bytes: int = 32 << 20
    """Size of a tile of products: it and what else is in use must fit the L2 cache (60 MB on an H200)."""
    chunk: int = 1024
    """Scores of a row that are offered to its list at once; a power of two."""
    list_block: int = 1024
    """Entries of a list that are read together; a power of two."""
    row_room: int = 1024
    """Pairs of one row for which `PerBatch` and `Threshold` first make room (`PerBatch`: at least 8 k)."""

    def __post_init__(self) -> None:
        for name in ("chunk", "list_block"):
            value = getattr(self, name)
            if value < 2 or value & (value - 1):
                raise ValueError(f"SelectPlan: {name} must be a power of two from 2 on, not {value}")
        if self.height < 1 or self.tile_bytes < 1 or self.row_room < 2 or not self.sigmas > 0:
            raise ValueError(f"SelectPlan: sizes must be positive, row_room at least 2: {self}")
        if self.precision not in ("rescored", "full"):
            raise ValueError(f"SelectPlan: precision must be 'rescored' or 'full', not {self.precision!r}")

    def tile_width(self, dtype: torch.dtype, tiles: int = 1) -> int:
        """Columns of a product, when `tiles` of them are in use together; a multiple of the chunk."""
        whole = self.tile_bytes // (self.height * dtype.itemsize * tiles)
        return max(self.chunk, whole // self.chunk * self.chunk)


DEFAULT_PLAN = SelectPlan()


def launch_options(warps: int = 4) -> dict[str, Any]:
    """Options of every launch here. One stage: lists are read and written in the same loops, in the written order."""
    return {"num_warps": warps, "num_stages": 1}


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """A request with its columns chosen: entry j of anything is the j-th ranked column."""

    x: Float[Tensor, "rows d_in"]
    W: Float[Tensor, "n d_in"]
    """A feature's encoder weights in a row; any memory order."""
    bias: Float[Tensor, " n"]
    scale: Float[Tensor, " n"] | None
    g: Float[Tensor, "rows d_out"] | None
    """With an attribution: the gradient and the decoder, in the roles of `x` and `W`."""
    W_dec: Float[Tensor, "n d_out"] | None
    weight: Float[Tensor, " rows"] | None
    """With an attribution: factor of |<g, W_dec>| of a token."""
    product: bool
    """Whether the factor of z is the weighted effect itself, else 1 plus it."""
    mean: Float[Tensor, " rows"] | None
    """With an attribution: mean of |<g, W_dec>| over the ranked columns of a token."""

    @property
    def rows(self) -> int:
        return self.x.shape[0]

    @property
    def n(self) -> int:
        return self.W.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of scores and sums."""
        return sum_dtype(self.x.dtype)

    @property
    def scored(self) -> bool:
        """Whether the score is something else than z."""
        return self.scale is not None or self.weight is not None


def operands_of(request: SelectRequest, plan: SelectPlan) -> Operands:
    """Operands of a request. An attribution costs one more pass of products for its means."""
    g = W_dec = weight = mean = None
    attribution = request.attribution
    if attribution is not None:
        g, W_dec = attribution.g, request.of_columns(attribution.W_dec)
        mean = _mean_effect(g, W_dec, plan)
        if attribution.norm == "global" and attribution.mean_c is not None:
            weight = torch.full_like(mean, 1 / attribution.mean_c)
        else:
            weight = mean.where(mean != 0, math.inf).reciprocal()  # no gradient: the effect is 0
        if attribution.mode == "add":
            # The factor is exactly 1 then, whatever the effect: plain z is ranked.
            weight = weight * attribution.beta if attribution.beta else None
    return Operands(
        x=request.x,
        W=request.of_columns(request.W_enc.t()),
        bias=request.of_columns(request.b_enc).contiguous(),
        scale=None if request.scale is None else request.of_columns(request.scale).contiguous(),
        g=g if weight is not None else None,
        W_dec=W_dec if weight is not None else None,
        weight=weight,
        product=attribution is not None and attribution.mode == "mul",
        mean=mean,
    )


def staged(stage: Tensor, source: Tensor, start: int) -> int:
    """Copies rows from `start` on into `stage`, zeros the rest, returns the number of rows copied."""
    part = source[start : start + stage.shape[0]]
    stage[: part.shape[0]].copy_(part)
    stage[part.shape[0] :].zero_()
    return part.shape[0]


def multiply(A: Float[Tensor, "h d"], B: Float[Tensor, "w d"], buffer: Tensor) -> Float[Tensor, "h w"]:
    """`A @ B.T` in the first entries of a flat buffer."""
    out = buffer[: A.shape[0] * B.shape[0]].view(A.shape[0], B.shape[0])
    return torch.mm(A, B.t(), out=out)


def _mean_effect(
    g: Float[Tensor, "rows d_out"], W_dec: Float[Tensor, "n d_out"], plan: SelectPlan
) -> Float[Tensor, " rows"]:
    """Mean of `|g @ W_dec.T|` over the columns of each row; 0 where there are none."""
    n, width = W_dec.shape[0], plan.tile_width(g.dtype)
    mean = torch.zeros(g.shape[0], dtype=sum_dtype(g.dtype), device=g.device)
    stage = g.new_empty(plan.height, g.shape[1])
    buffer = g.new_empty(plan.height * min(width, n))
    for start in range(0, g.shape[0], plan.height):
        rows = staged(stage, g, start)
        for first in range(0, n, width):
            effect = multiply(stage, W_dec[first : first + width], buffer).abs_()
            mean[start : start + rows] += effect.sum(dim=1, dtype=mean.dtype)[:rows]
    return mean / max(n, 1)
