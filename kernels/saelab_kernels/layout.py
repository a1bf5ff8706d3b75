"""Memory order of the encoder: feature-major, whatever the shape says."""

from __future__ import annotations

from saelab_kernels.shapes import Float, Tensor


def is_feature_major(W: Float[Tensor, "d_in d_sae"]) -> bool:
    """Whether `W` is the transpose of a contiguous `[d_sae, d_in]` tensor."""
    return W.t().is_contiguous()


def feature_major_like(W: Float[Tensor, "d_in d_sae"]) -> Float[Tensor, "d_in d_sae"]:
    """`W` itself where it is feature-major, else a copy with the same shape and values that is.

    A feature's encoder weights then lie together, as its decoder row does: the gradient of a feature is one
    contiguous row, and choosing columns (dead features) copies whole rows.
    """
    return W.t().contiguous().t()
