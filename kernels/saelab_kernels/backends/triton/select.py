"""Encode and select on the GPU: which driver serves which rule."""

from __future__ import annotations

from saelab_kernels.backends.triton.launch import on_device
from saelab_kernels.backends.triton.select_per_batch import select_per_batch
from saelab_kernels.backends.triton.select_per_feature import select_per_feature
from saelab_kernels.backends.triton.select_per_token import select_per_token
from saelab_kernels.backends.triton.select_threshold import select_threshold
from saelab_kernels.backends.triton.tiles import DEFAULT_PLAN, SelectPlan
from saelab_kernels.request import Selection, SelectRequest
from saelab_kernels.rules import PerBatch, PerFeature, PerToken


def triton_select(request: SelectRequest, plan: SelectPlan = DEFAULT_PLAN) -> Selection:
    """See `saelab_kernels.select.encode_select`.

    No tensor of `rows * d_sae` elements exists at any time, unless that many pairs are kept. `PerToken` never waits
    for the device; the other rules read a few numbers from it, see their drivers.
    """
    rule = request.rule
    with on_device(request.x):
        if isinstance(rule, PerToken):
            return select_per_token(request, rule, plan)
        if isinstance(rule, PerBatch):
            return select_per_batch(request, rule, plan)
        if isinstance(rule, PerFeature):
            return select_per_feature(request, plan)
        return select_threshold(request, plan)
