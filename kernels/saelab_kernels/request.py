"""What a selection is asked with and what it returns, as backends see them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from saelab_kernels.code import SparseCode
from saelab_kernels.rules import Rule
from saelab_kernels.shapes import Float, Int, Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attribution:
    """Gradient attribution of g-SAE (arXiv 2411.10397): `c[b, i] = |<g[b], W_dec[i]>|`.

    The paper ranks by representation and by effect on the loss; the additive form `z * (1 + beta * c)` and
    the normalisation of c are reconstructions. No gradient flows through `g` or the selection.
    """

    g: Float[Tensor, "rows d_out"]
    """Gradient of the model's summed next-token loss with respect to the activation."""
    W_dec: Float[Tensor, "d_sae d_out"]
    """Decoder, rows of unit norm."""
    beta: float
    """Weight of the effect against the representation, at least 0; without meaning for `mul`."""
    mode: Literal["add", "mul"] = "add"
    """`add`: score z (1 + beta c), beta 0 ranks plain z; `mul`: score z c, its limit for a large beta."""
    norm: Literal["token", "global"] = "token"
    """What c is divided by: its mean over the ranked columns of the token, or `mean_c`."""
    mean_c: float | None = None
    """Running mean of c, above 0; needed by `norm="global"`, without meaning for `token`."""

    def __post_init__(self) -> None:
        if self.mode not in ("add", "mul") or self.norm not in ("token", "global"):
            raise ValueError(f"Attribution: unknown mode {self.mode!r} or norm {self.norm!r}")
        if not math.isfinite(self.beta) or self.beta < 0:
            raise ValueError(f"Attribution: beta must be finite and at least 0, not {self.beta}")
        if self.norm == "global" and (self.mean_c is None or not 0 < self.mean_c < math.inf):
            raise ValueError(f"Attribution: norm='global' needs mean_c above 0, not {self.mean_c}")


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """What `encode_select` returns."""

    code: SparseCode
    """Uniform and sorted by falling score for `PerToken` (unless `sort=False`); ragged, in the order of the columns,
    otherwise."""
    boundary: Float[Tensor, "*units"] | None = None
    """Where asked for: the largest score that was not kept, 0 if no positive one was left out; for each row
    (`PerToken`), the batch (`PerBatch`, 0-d) or each column (`PerFeature`, `[d_sae]` or as `columns`).
    Without ties, `score > boundary` is exactly the kept set."""
    band: SparseCode | None = None
    """For `Threshold` with a bandwidth: the raw z of all pairs with `|score - theta| < band / 2`, kept or
    not, also non-positive ones. Ragged, no padding."""
    attribution_mean: Float[Tensor, " rows"] | None = None
    """With an attribution: the mean of c over the ranked columns of each row, before any normalisation."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SelectRequest:
    """The checked arguments of one `encode_select` call, as backends receive them."""

    x: Float[Tensor, "rows d_in"]
    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    rule: Rule
    budgets: Int[Tensor, " units"] | None
    theta: Float[Tensor, "*d_sae"] | None
    scale: Float[Tensor, " d_sae"] | None
    attribution: Attribution | None
    columns: Int[Tensor, " n"] | None
    band: float
    boundary: bool
    sort: bool = True

    @property
    def n_columns(self) -> int:
        """Columns that are ranked."""
        return self.W_enc.shape[1] if self.columns is None else self.columns.shape[0]

    def of_columns(self, per_feature: Tensor) -> Tensor:
        """Entries of a `[d_sae, ...]` tensor that belong to the ranked columns."""
        return per_feature if self.columns is None else per_feature.index_select(0, self.columns)
