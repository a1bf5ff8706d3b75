"""Rounding to the stored number format, which must not turn values into infinities unnoticed."""

from __future__ import annotations

import torch

from saelab.activations.spec import StoredDtype
from saelab.errors import SaelabError
from saelab_kernels.shapes import Float, Tensor


def round_to(x: Float[Tensor, "n d_in"], dtype: StoredDtype, what: str) -> Float[Tensor, "n d_in"]:
    """Round finite values to the stored dtype.

    Raises:
        SaelabError: Some became infinite; the message names a dtype that holds them.
    """
    stored = x.to(getattr(torch, dtype))
    overflowed = int((~torch.isfinite(stored)).sum())
    if overflowed:
        largest = float(x.abs().max())
        fits = "bfloat16" if largest <= torch.finfo(torch.bfloat16).max else "float32"
        raise SaelabError(
            f"{overflowed:,} of {x.numel():,} values of {what} do not fit {dtype} (largest {largest:.4g}); "
            f"store them as {fits} (--dtype {fits})"
        )
    return stored
