"""What an SAE's weights say of a feature without a corpus."""

from __future__ import annotations

from typing import Any

import torch

from saelab.sae.autoencoder import SparseAutoencoder


def weight_columns(sae: SparseAutoencoder) -> dict[str, list[Any]]:
    """Return the columns of ``features.parquet`` that come from the weights; None where a number is not defined."""
    decoder = sae.W_dec.detach().float().cpu()
    encoder = sae.W_enc.detach().float().cpu().T
    n = len(decoder)
    cosine: list[float | None] = [None] * n
    if encoder.shape == decoder.shape:
        both = torch.linalg.vector_norm(encoder, dim=1) * torch.linalg.vector_norm(decoder, dim=1)
        found = (encoder * decoder).sum(1) / both
        cosine = [
            None if norm == 0 else value for value, norm in zip(found.tolist(), both.tolist(), strict=True)
        ]
    threshold: list[float | None] = [None] * n
    if sae.theta is not None:
        threshold = list(sae.theta.detach().float().cpu().expand(n).tolist())
    return {
        "decoder_norm": torch.linalg.vector_norm(decoder, dim=1).tolist(),
        "encoder_decoder_cosine": cosine,
        "encoder_bias": sae.b_enc.detach().float().cpu().tolist(),
        "threshold": threshold,
    }
