"""How the features of one dictionary for several hookpoints are divided between these: norms and cosines of decoders.

A crosscoder's decoder row is the rows of its sources (models, layers) side by side; a feature that only one
model has is a row whose other parts are small. Norms of activations differ between sources: compare them in the
units of each source's own activations (``scales``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saelab.errors import UsageError
from saelab_kernels.shapes import Float, Tensor


def source_norms(
    W_dec: Float[Tensor, "d_sae d_out"], widths: Sequence[int], scales: Sequence[float] | None = None
) -> Float[Tensor, "d_sae sources"]:
    """Return the norm of each source's part of each decoder row.

    Args:
        W_dec: Decoder, the sources' rows side by side.
        widths: Width of each source.
        scales: What each source's part is multiplied by first, for example 1 over the root mean square norm of
            its activations, where the decoder is in raw units; 1 where not given.

    Raises:
        UsageError: The widths do not make up the decoder's, or there are not as many scales.
    """
    parts = _parts(W_dec, widths)
    if scales is not None and len(scales) != len(parts):
        raise UsageError(f"source_norms: {len(parts)} sources and {len(scales)} scales")
    norms = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts], 1)
    return norms if scales is None else norms * norms.new_tensor(scales)


def relative_norms(norms: Float[Tensor, "d_sae sources"]) -> Float[Tensor, "d_sae sources"]:
    """Return each source's share of the summed norms; NaN for a feature whose decoder is 0 in all.

    Of two sources, `|d^A| / (|d^A| + |d^B|)` (paper: Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer
    Features and Model Diffing"): about 1 for a feature of A alone, 1/2 for a shared one, 0 for one of B alone.

    Args:
        norms: From `source_norms`.
    """
    return norms / norms.sum(1, keepdim=True)


def decoder_cosines(
    W_dec: Float[Tensor, "d_sae d_out"], widths: Sequence[int], first: int = 0, second: int = 1
) -> Float[Tensor, " d_sae"]:
    """Return the cosine between two sources' decoders of each feature; NaN where one of them is 0.

    It is telling for features that both sources share, and for sources with the same coordinates: a model and its
    fine-tune, or neighbouring layers of one residual stream.

    Args:
        W_dec: Decoder, the sources' rows side by side.
        widths: Width of each source.
        first: Number of one source.
        second: Number of the other.

    Raises:
        UsageError: The two have not the same width, or the widths do not make up the decoder's.
    """
    parts = _parts(W_dec, widths)
    a, b = parts[first], parts[second]
    if a.shape != b.shape:
        raise UsageError(
            f"decoder_cosines: the sources have widths {a.shape[1]} and {b.shape[1]}, there is no angle between them"
        )
    products = (a * b).sum(1)
    return products / (torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1))


def _parts(W_dec: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    if sum(widths) != W_dec.shape[1]:
        raise UsageError(f"the widths {list(widths)} do not make up the decoder's {W_dec.shape[1]}")
    return W_dec.split(list(widths), 1)
