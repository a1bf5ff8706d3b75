"""bfloat16 operands of a selection, and how far a pre-activation that is computed from them can be off.

    z = <x, w> + b = <x - m, w> + s,   s = b + <m, w>

m is the mean of the batch's rows: coordinates that all tokens share would cost the others their digits. s is
computed in float32; the product of X = bf16(x - m) and V = bf16(w), rounded to bfloat16 once more, is the
tensor cores'. Derived here, with u = 2^-9, |.|_p the p-norm, and z' what is computed:

    |z' - z| <= R + A + u |<X, V>| + 2^-22 (|<X, V>| + |s|)
    R: rounding of x - m and w to bfloat16, |sum x_j w_j (d_j + e_j)| with |d_j|, |e_j| <= u.
       Worst case: (2 u + u^2) |x - m|_2 |w|_2, a theorem (Cauchy-Schwarz).
       Else: sigmas sqrt(2) u |x - m|_4 |w|_4. By Hoeffding's inequality a sum of rounding errors that are independent
       and have mean 0 passes this with a probability of at most 2 exp(-sigmas^2 / 2), 3e-8 for a pair at sigmas 6.
       Rounding errors are no random numbers, so this is a model (that of Higham and Mary, "A new approach to
       probabilistic rounding error analysis", 2019), not a theorem.
    A: float32 sums of d_in products: 2^-22 (d_in / 16 + 16) |x - m|_2 |w|_2 for the tensor cores, which add 16
       products at a time, and 2^-23 (d_in / BLOCK + 64) (|x|_2 + |m|_2) |w|_2 for the sums of the kernels here,
       in blocks; both worst cases. How tensor cores round inside is not documented: certain to our knowledge only.

Everything is a bound of a row times a norm of a feature, by |v|_2 <= d_in^(1/4) |v|_4. The kernel that ranks in
float32 is inside the bound too, so the candidates hold what float32 would choose, not only what exact arithmetic
would. Largest exponents are taken out before powers, so that small weights do not vanish in their squares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl

from saelab_kernels.backends.triton.select_filter import offer_bounded_tile
from saelab_kernels.backends.triton.select_lists import RowLists
from saelab_kernels.backends.triton.tiles import Operands, SelectPlan, launch_options, multiply
from saelab_kernels.shapes import Float, Tensor

BLOCK_D = 128
"""Part of a row that is read at once."""
_ALIGN = 16
"""Lengths of bfloat16 operands are padded to a multiple: others run on slower matrix kernels."""


@triton.jit
@no_type_check
def power_sum(share, WORST: tl.constexpr):
    """Sum of squares or of fourth powers of each row of a block."""
    square = share * share
    if not WORST:
        square = square * square
    return tl.sum(square, axis=1)


@triton.jit
@no_type_check
def root_of(total, WORST: tl.constexpr):
    """The norm that a `power_sum` belongs to."""
    root = tl.sqrt(total)
    if not WORST:
        root = tl.sqrt(root)
    return root


@triton.jit
@no_type_check
def round_features_kernel(
    W, row_step, column_step, bias, mean, rounded, norm, shift, n, d, d_padded,
    WORST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`ROWS` features a program: bfloat16 copy with zeros to the padded shape, norm, and b + <m, w>."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    largest = tl.zeros((ROWS,), tl.float32)
    dot = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, d_padded, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = (row[:, None] < n) & (col[None, :] < d)
        w = tl.load(
            W + row[:, None] * row_step + col[None, :].to(tl.int64) * column_step, mask=inside, other=0
        ).to(tl.float32)
        to = rounded + row[:, None] * d_padded + col[None, :]
        tl.store(to, w.to(tl.bfloat16), mask=(col < d_padded)[None, :] & (row >= 0)[:, None])
        dot += w * tl.load(mean + col, mask=col < d, other=0)[None, :]
        largest = tl.maximum(largest, tl.max(tl.abs(w), axis=1))
    unit = tl.where(largest > 0, largest, 1)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, d, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = (row[:, None] < n) & (col[None, :] < d)
        w = tl.load(
            W + row[:, None] * row_step + col[None, :].to(tl.int64) * column_step, mask=inside, other=0
        ).to(tl.float32)
        total += power_sum(w / unit[:, None], WORST)
    tl.store(norm + row, largest * root_of(total, WORST), mask=row < n)
    b = tl.load(bias + row, mask=row < n, other=0).to(tl.float32)
    tl.store(shift + row, b + tl.sum(dot, axis=1), mask=row < n)


@triton.jit
@no_type_check
def round_tokens_kernel(
    x, row_step, column_step, mean, mean_norm, rounded, error, rows, d, d_padded, first,
    rounding, product_sum, own_sum, WORST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token a program: bfloat16 of x - m with zeros to the padded shape, and the row's part of the bound."""
    row = tl.program_id(0)
    source = x + (first + row).to(tl.int64) * row_step
    d = tl.where(first + row < rows, d, 0)  # padding of the tile
    largest = tl.full((), 0, tl.float32)
    for start in range(0, d_padded, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = col < d
        m = tl.load(mean + col, mask=inside, other=0)
        part = tl.load(source + col.to(tl.int64) * column_step, mask=inside, other=0).to(tl.float32) - m
        to = rounded + row.to(tl.int64) * d_padded + col
        tl.store(to, part.to(tl.bfloat16), mask=col < d_padded)
        largest = tl.maximum(largest, tl.max(tl.abs(part), axis=0))
    unit = tl.where(largest > 0, largest, 1)
    squares = tl.zeros((1,), tl.float32)
    powers = tl.zeros((1,), tl.float32)
    for start in range(0, d, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = col < d
        m = tl.load(mean + col, mask=inside, other=0)
        part = tl.load(source + col.to(tl.int64) * column_step, mask=inside, other=0).to(tl.float32) - m
        share = (part / unit)[None, :]
        squares += power_sum(share, True)
        powers += power_sum(share, WORST)
    length = largest * tl.sum(root_of(squares, True), axis=0)
    spread = largest * tl.sum(root_of(powers, WORST), axis=0)
    bound = rounding * spread + (product_sum + own_sum) * length + 2 * own_sum * tl.load(mean_norm)
    tl.store(error + row, bound)


@dataclass(frozen=True, slots=True, eq=False)
class BoundedTiles:
    """Fills interval lists from bfloat16 products. All features are rounded when it is made, tokens tile by tile."""

    operands: Operands
    plan: SelectPlan
    V: Float[Tensor, "n_padded d_padded"]
    norm: Float[Tensor, " n"]
    shift: Float[Tensor, " n"]
    mean: Float[Tensor, " d_in"]
    mean_norm: Float[Tensor, ""]
    X: Float[Tensor, "height d_padded"]
    error: Float[Tensor, " height"]
    buffer: Float[Tensor, " tile"]

    @classmethod
    def of(cls, operands: Operands, plan: SelectPlan) -> BoundedTiles:
        """Rounds the features of a request that has at least one row and one column."""
        x, W = operands.x, operands.W
        n, d = W.shape
        padded = [-(-size // _ALIGN) * _ALIGN for size in (n, d)]
        # A broken token must not take the others with it; any finite m is right.
        mean = x.mean(dim=0, dtype=torch.float32).nan_to_num(nan=0, posinf=0, neginf=0)
        half = {"dtype": torch.bfloat16, "device": x.device}
        width = plan.tile_width(torch.bfloat16)
        tiles = cls(
            operands=operands,
            plan=plan,
            V=torch.empty(*padded, **half),
            norm=mean.new_empty(n),
            shift=mean.new_empty(n),
            mean=mean,
            mean_norm=torch.linalg.vector_norm(mean),
            X=torch.empty(plan.height, padded[1], **half),
            error=mean.new_empty(plan.height),
            buffer=torch.empty(plan.height * min(width, padded[0]), **half),
        )
        rows = min(16, padded[0])
        round_features_kernel[(padded[0] // rows,)](
            W, W.stride(0), W.stride(1), operands.bias, mean, tiles.V, tiles.norm, tiles.shift, n, d, padded[1],
            WORST=math.isinf(plan.sigmas), ROWS=rows, BLOCK=BLOCK_D, **launch_options(),
        )  # fmt: skip
        return tiles

    def fill(self, lists: RowLists, start: int, rows: int) -> None:
        """Offers all columns of the tile of tokens from `start` on."""
        x = self.operands.x
        d = x.shape[1]
        worst = math.isinf(self.plan.sigmas)
        root = 1.0 if worst else max(d, 1) ** 0.25
        round_tokens_kernel[(self.plan.height,)](
            x, x.stride(0), x.stride(1), self.mean, self.mean_norm, self.X, self.error, x.shape[0], d, self.X.shape[1],
            start,
            1.01 * (2.01 * 2.0**-9 if worst else self.plan.sigmas * math.sqrt(2) * 2.0**-9),
            1.01 * root * 2.0**-22 * (d / 16 + 16),
            1.01 * root * 2.0**-23 * (d / BLOCK_D + 64),
            WORST=worst, BLOCK=BLOCK_D, **launch_options(),
        )  # fmt: skip
        width = self.plan.tile_width(torch.bfloat16)
        bound = (self.error, self.norm)
        for first in range(0, self.operands.n, width):
            with _sums_in_float32():
                tile = multiply(self.X, self.V[first : first + width], self.buffer)
            offer_bounded_tile(lists, self.operands, self.plan, tile, self.shift, bound, (start, first), rows)


@contextmanager
def _sums_in_float32() -> Iterator[None]:
    """Forbids cuBLAS to add parts of a bfloat16 product in bfloat16, which the bound does not cover."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before
