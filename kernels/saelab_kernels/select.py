"""Encode and select: from encoder inputs to a sparse code, without a dense `[rows, d_sae]` tensor.

    z     = x @ W_enc + b_enc                             pre-activations
    score = z * scale                                     free decoder norms, crosscoders
          = z * (1 + beta * c)  or  z * c                 gradient attribution ("add", "mul")
    kept  = the pairs that the rule picks by score, among those with score > 0
    code  = z on the kept pairs

Among equal scores the lower row wins, in a row the lower column. A NaN score ranks first and is kept, so that
broken weights show in the loss instead of vanishing in the selection.
"""

from __future__ import annotations

import math

import torch

from saelab_kernels.dispatch import get_backend
from saelab_kernels.request import Attribution, Selection, SelectRequest
from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Rule, Threshold
from saelab_kernels.shapes import Float, Int, Tensor


@torch.no_grad()
def encode_select(
    x: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    rule: Rule,
    *,
    budgets: Int[Tensor, " units"] | None = None,
    theta: Float[Tensor, "*d_sae"] | float | None = None,
    scale: Float[Tensor, " d_sae"] | None = None,
    attribution: Attribution | None = None,
    columns: Int[Tensor, " n"] | None = None,
    band: float = 0.0,
    boundary: bool = False,
    sort: bool = True,
    backend: str | None = None,
) -> Selection:
    """Encode `x` and keep the pairs that `rule` picks. No gradient is recorded.

    Args:
        x: the encoder's input (the caller has subtracted `b_dec` where the SAE does so); the dtype of the
            weights. For `PerBatch` and `PerFeature` its rows are the selection batch.
        W_enc: fastest where it is feature-major (`layout.feature_major_like`).
        b_enc: encoder bias.
        rule: what to keep. `PerToken`'s k is capped at the number of columns.
        budgets: int64; `[rows]` with `PerToken` (each at most k), `[d_sae]` with `PerFeature` (required).
        theta: `Threshold`'s threshold on the score, one number or `[d_sae]` (required there).
        scale: factor of the score for each feature, at least 0.
        attribution: factor of the score for each pair; not together with `scale`.
        columns: int64, distinct; rank these features only, at the cost of `n` columns. The code holds global
            feature numbers.
        band: bandwidth in units of the score; above 0 only with `Threshold`.
        boundary: also return the largest score that was not kept; not with `Threshold`.
        sort: rows of `PerToken` by falling score; False leaves their order open, which is cheaper.
        backend: a name of `dispatch.available_backends()`; None chooses by the device.

    Raises:
        ValueError: shapes, dtypes or options that do not fit together; on a processor also budgets out of range
            and negative scales, which are not looked at on a device.
    """
    theta = _theta_tensor(theta, x)
    request = SelectRequest(
        x=x,
        W_enc=W_enc,
        b_enc=b_enc,
        rule=rule,
        budgets=budgets,
        theta=theta,
        scale=scale,
        attribution=attribution,
        columns=columns,
        band=band,
        boundary=boundary,
        sort=sort,
    )
    _check_weights(request)
    _check_rule(request)
    _check_score(request)
    return get_backend(backend, x).encode_select(request)


def _theta_tensor(theta: Tensor | float | None, x: Tensor) -> Tensor | None:
    if theta is None or isinstance(theta, Tensor):
        return theta
    return torch.tensor(theta, dtype=x.dtype, device=x.device)


def _check_weights(request: SelectRequest) -> None:
    x, W_enc, b_enc, columns = request.x, request.W_enc, request.b_enc, request.columns
    if x.ndim != 2 or W_enc.ndim != 2 or x.shape[1] != W_enc.shape[0] or b_enc.shape != W_enc.shape[1:]:
        raise ValueError(
            f"encode_select: x {list(x.shape)}, W_enc {list(W_enc.shape)} and b_enc {list(b_enc.shape)} "
            "must be [rows, d_in], [d_in, d_sae] and [d_sae]"
        )
    if not x.dtype == W_enc.dtype == b_enc.dtype or not x.is_floating_point():
        raise ValueError(
            f"encode_select: x {x.dtype}, W_enc {W_enc.dtype} and b_enc {b_enc.dtype} "
            "must have one floating point dtype"
        )
    if columns is not None and (columns.ndim != 1 or columns.dtype != torch.int64):
        raise ValueError(
            f"encode_select: columns must be int64 [n], not {columns.dtype} {list(columns.shape)}"
        )


def _check_rule(request: SelectRequest) -> None:
    rule, d_sae, rows = request.rule, request.W_enc.shape[1], request.x.shape[0]
    budgets, theta = request.budgets, request.theta
    if not isinstance(rule, PerToken | PerBatch | PerFeature | Threshold):
        raise ValueError(f"encode_select: {rule!r} is not a rule")
    if budgets is not None:
        if not isinstance(rule, PerToken | PerFeature):
            raise ValueError(f"encode_select: {rule} takes no budgets")
        units = rows if isinstance(rule, PerToken) else d_sae
        if budgets.shape != (units,) or budgets.dtype != torch.int64:
            raise ValueError(
                f"encode_select: budgets must be int64 [{units}], not {budgets.dtype} {list(budgets.shape)}"
            )
        limit = rule.k if isinstance(rule, PerToken) else math.inf
        # On a device the values are believed: reading them would make every step wait for it.
        if budgets.device.type == "cpu" and units and (int(budgets.min()) < 0 or int(budgets.max()) > limit):
            raise ValueError(
                f"encode_select: budgets must lie in 0 to {limit}, "
                f"found {int(budgets.min())} to {int(budgets.max())}"
            )
    elif isinstance(rule, PerFeature):
        raise ValueError("encode_select: PerFeature needs budgets [d_sae]")
    if isinstance(rule, Threshold) != (theta is not None):
        raise ValueError("encode_select: theta is needed with Threshold and not allowed without it")
    if theta is not None and theta.shape not in ((), (d_sae,)):
        raise ValueError(f"encode_select: theta must be one number or [{d_sae}], not {list(theta.shape)}")


def _check_score(request: SelectRequest) -> None:
    rule, scale, attribution = request.rule, request.scale, request.attribution
    rows, d_sae = request.x.shape[0], request.W_enc.shape[1]
    if request.band and not (isinstance(rule, Threshold) and 0 < request.band < math.inf):
        raise ValueError(
            f"encode_select: band must be finite, at least 0 and goes with Threshold, not {request.band} "
            f"with {rule}"
        )
    if request.boundary and isinstance(rule, Threshold):
        raise ValueError("encode_select: boundary has no meaning for Threshold; its boundary is theta")
    if scale is not None and attribution is not None:
        raise ValueError("encode_select: give scale or attribution, not both")
    negative = scale is not None and scale.device.type == "cpu" and bool((scale < 0).any())
    if scale is not None and (scale.shape != (d_sae,) or negative):
        raise ValueError(f"encode_select: scale must be [{d_sae}] and nowhere below 0")
    if attribution is not None:
        g, W_dec = attribution.g, attribution.W_dec
        if g.ndim != 2 or W_dec.ndim != 2 or g.shape[0] != rows or W_dec.shape != (d_sae, g.shape[1]):
            raise ValueError(
                f"encode_select: attribution g {list(g.shape)} and W_dec {list(W_dec.shape)} "
                f"must be [{rows}, d_out] and [{d_sae}, d_out]"
            )
        if not g.dtype == W_dec.dtype == request.x.dtype:
            raise ValueError(
                f"encode_select: attribution g {g.dtype} and W_dec {W_dec.dtype} must be {request.x.dtype}"
            )
