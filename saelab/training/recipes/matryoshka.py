"""Matryoshka BatchTopK: the first features alone must reconstruct too, for several numbers of first features."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from saelab.errors import UsageError
from saelab.sae.autoencoder import SAEParameters
from saelab.training.recipes.batch_topk import BatchTopK
from saelab.training.recipes.moments import Clock, Forward, Inputs, Loss, State
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.code import SparseCode
from saelab_kernels.decode import decode_error
from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Matryoshka(BatchTopK):
    """BatchTopK with nested dictionaries (paper: Bussmann et al. 2025, arXiv 2503.17547).

    One batch-wide ranking over all features, as in BatchTopK, is shared by all prefixes (reference codes). With the
    sizes ``F_1 < ... < F_G = d_sae`` and `x_hat_g = f[:F_g] W_dec[:F_g] + b_dec [tokens, d_in]`, the loss is the
    **mean** over g of `mean |x - x_hat_g|^2 / Var(x)`, plus AuxK on the residual of the whole dictionary. Reference
    codes differ by a constant: one sums the terms, another divides twice; with the mean, learning rate and AuxK weigh
    as in the other recipes (ours).

    A block of features is decoded once: the error of a prefix is that of the one before it plus the
    block's part, and the block's gradient is the sum of those of all prefixes that hold it (derived).

    General features gather in the small prefixes, which keeps them from being absorbed by special ones (the paper's
    claim), for a slightly worse reconstruction. ``k`` is the mean number of features of a token in
    the whole dictionary; inference is BatchTopK's threshold. Each prefix's FVU is logged by its size.
    """

    name: ClassVar[str] = "matryoshka"

    prefixes: tuple[float, ...] = (0.03125, 0.09375, 0.21875, 0.46875, 1.0)
    """Sizes of the nested dictionaries as rising shares of the width, the last one 1; by default 2,048, 6,144, 14,336,
    30,720 and 65,536 of 65,536 (general knowledge of the field)."""

    def check(self, d_sae: int) -> None:
        BatchTopK.check(self, d_sae)
        bounds = (0.0, *self.prefixes)
        if bounds[-1] != 1 or any(not low < high for low, high in pairwise(bounds)):
            raise UsageError(
                f"matryoshka: prefixes must be rising shares of the width that end with 1, not {list(self.prefixes)}"
            )

    def sizes(self, d_sae: int) -> list[int]:
        """Return the numbers of features of the nested dictionaries; shares of one size count once."""
        return sorted({max(1, round(share * d_sae)) for share in self.prefixes})

    @torch.no_grad()
    def forward(
        self, inputs: Inputs, params: SAEParameters, state: State, clock: Clock, variance: float
    ) -> Forward:
        selection = self.select(inputs, params, state, clock)
        sizes = self.sizes(selection.code.d_sae)
        blocks = split_by_feature(selection.code, sizes)
        errors, squares = _prefix_errors(blocks, inputs.target, params)
        fvus = [of_prefix.sum() / (len(inputs.target) * variance) for of_prefix in squares]
        share = 2 / (len(inputs.target) * variance * len(sizes))
        return Forward(
            selection=selection,
            code=selection.code,
            error=errors[-1],
            squares=squares[-1],
            loss=Loss(
                torch.stack(fvus).mean(),
                {f"fvu_first_{size}": fvu for size, fvu in zip(sizes[:-1], fvus, strict=False)},
            ),
            terms=_terms(blocks, errors, inputs.encoder, share),
            own={},
        )


def split_by_feature(code: SparseCode, bounds: list[int]) -> list[SparseCode]:
    """Split a code into codes of consecutive features; each has all rows and holds its own entries alone.

    Args:
        code: Of any form.
        bounds: Rising; block i holds the features from ``bounds[i - 1]`` (0 for the first) to ``bounds[i]``.
    """
    exact, rows = code.ragged(), code.row_ids()
    blocks = []
    for low, high in pairwise((0, *bounds)):
        inside = (exact.columns >= low) & (exact.columns < high)
        offsets = torch.zeros(code.n_rows + 1, dtype=torch.int64, device=rows.device)
        torch.cumsum(torch.bincount(rows[inside], minlength=code.n_rows), 0, out=offsets[1:])
        blocks.append(SparseCode(exact.values[inside], exact.columns[inside], code.d_sae, offsets))
    return blocks


def _prefix_errors(
    blocks: list[SparseCode], target: Float[Tensor, "tokens d_out"], params: SAEParameters
) -> tuple[list[Tensor], list[Tensor]]:
    """Return `x_hat_g - target` of each prefix, and its squared norm for each token."""
    found = [decode_error(blocks[0], params.W_dec, params.b_dec, target)]
    for block in blocks[1:]:
        found.append(decode_error(block, params.W_dec, None, -found[-1][0]))
    return [error for error, _ in found], [squares for _, squares in found]


def _terms(
    blocks: list[SparseCode], errors: list[Tensor], x: Float[Tensor, "tokens d_in"], share: float
) -> list[GradientTerm]:
    """Return one term a block, with the sum of the gradients of all prefixes that hold it.

    The first block is in every prefix, as ``b_dec`` is, so its term carries the gradient of ``b_dec``.
    """
    terms: list[GradientTerm] = []
    g_out = torch.zeros_like(errors[-1])
    for number in reversed(range(len(blocks))):
        g_out = g_out + share * errors[number]
        terms.append(GradientTerm(blocks[number], x, g_out, adds_b_dec=number == 0))
    return terms[::-1]
